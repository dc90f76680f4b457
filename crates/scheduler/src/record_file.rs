//! The file that a record goes to, and the thread that writes it. Does not own what is worth a line (`recorder`).
//!
//! Nobody waits for the disk: when lines cannot be written, or not as fast as they come, or there are enough of them, the
//! record ends there, which is said once, and the scheduler goes on.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::SystemTime,
};

use identity::Security;
use planner::FleetName;
use wire::schedulers::fleet_name;

/// A file grows to this: a week of broadcasts to a thousand peers, and no disk's end.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Lines that wait for the disk: whatever ten thousand peers cause when they all come at once.
const WAITING_MAX: usize = 65_536;

/// What is written at once, about.
const WRITE_BYTES: usize = 256 << 10;

/// No line is longer: it holds a name and sixteen sources.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// What every record begins with.
const BEGIN: &[u8] = br#"{"record":"#;

/// An open file that ends with the header of a new record.
#[derive(Clone, Debug)]
pub struct RecordFile {
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
}

impl RecordFile {
    /// Opens a file, or makes it, and begins a record at its end.
    ///
    /// # Errors
    /// If that cannot be done, or the file is no record, or another process writes it, or it is as large as it may be.
    pub fn open(path: &Path, security: &Security) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        file.try_lock().map_err(|_| refused("another process writes it"))?;
        let whole = whole_bytes(&file)?;
        if whole >= FILE_BYTES_MAX {
            return Err(refused("it is as large as a record may be: name another one"));
        }
        let fleet = match fleet_name(security) {
            FleetName::LOCAL => "local".to_owned(),
            FleetName(name) => format!("{name:016x}"),
        };
        let start = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let header = record::Header { record: record::VERSION, fleet, start }.line();
        (&file).write_all(header.as_bytes())?;
        let bytes = whole + header.len() as u64;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), bytes })
    }

    /// Starts the thread that writes what it is given.
    pub(crate) fn start(&self) -> Lines {
        let (sender, lines) = sync_channel(WAITING_MAX);
        let writer = Self::clone(self);
        let thread = std::thread::spawn(move || writer.write(&lines));
        Lines { sender: Some(sender), thread: Some(thread), path: self.path.clone() }
    }

    /// Until nobody has lines any more, or they cannot be written.
    fn write(mut self, lines: &Receiver<String>) {
        let mut waiting = String::new();
        while let Ok(line) = lines.recv() {
            waiting.push_str(&line);
            while waiting.len() < WRITE_BYTES
                && let Ok(line) = lines.try_recv()
            {
                waiting.push_str(&line);
            }
            let bytes = self.bytes + waiting.len() as u64;
            let path = self.path.display();
            if bytes > FILE_BYTES_MAX {
                tracing::warn!(%path, "the record is as large as it may be, and ends");
                return;
            }
            if let Err(error) = (&*self.file).write_all(waiting.as_bytes()) {
                tracing::warn!(%path, %error, "the record cannot be written, and ends");
                // So that it ends with a whole line; where that fails too, it is cut when it is opened next.
                let _ = self.file.set_len(self.bytes);
                return;
            }
            self.bytes = bytes;
            waiting.clear();
        }
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// How many bytes of whole lines there are; what follows was cut off by a crash, and is cut off here.
fn whole_bytes(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let bytes = metadata.len();
    if !metadata.is_file() || bytes == 0 {
        return Ok(0);
    }
    let mut begin = [0; BEGIN.len()];
    if file.read_at(&mut begin, 0)? < BEGIN.len() || begin != BEGIN {
        return Err(refused("it is there and is no record"));
    }
    let from = bytes.saturating_sub(LINE_BYTES_MAX);
    let mut end = vec![0; usize::try_from(bytes - from).expect("a line or two")];
    file.read_exact_at(&mut end, from)?;
    let Some(last) = end.iter().rposition(|byte| *byte == b'\n') else {
        return Err(refused("it is there and is no record"));
    };
    let whole = from + last as u64 + 1;
    if whole < bytes {
        file.set_len(whole)?;
    }
    Ok(whole)
}

/// Where lines are put. What was put is written before this is gone.
pub(crate) struct Lines {
    sender: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Lines {
    /// Says whether the record goes on.
    pub(crate) fn put(&self, line: String) -> bool {
        match self.sender.as_ref().map(|sender| sender.try_send(line)) {
            Some(Ok(())) => true,
            Some(Err(TrySendError::Full(_))) => {
                let path = self.path.display();
                tracing::warn!(%path, "the record is written more slowly than it grows, and ends");
                false
            }
            // The thread has said why.
            Some(Err(TrySendError::Disconnected(_))) | None => false,
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        (dir, path)
    }

    fn open(path: &Path) -> Result<RecordFile, String> {
        RecordFile::open(path, &Security::Plain).map_err(|error| error.to_string())
    }

    #[test]
    fn records_follow_one_another_and_what_was_cut_off_is_gone() {
        let (_dir, path) = path();
        let lines = open(&path).unwrap().start();
        assert!(lines.put("{\"seconds\":1.0,\"event\":\"sang\"}\n".to_owned()));
        drop(lines);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"sec").unwrap();
        drop(open(&path).unwrap());
        let records = record::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let counts: Vec<_> = records.iter().map(|record| record.entries.len()).collect();
        assert_eq!(counts, [1, 0]);
        assert_eq!(records[0].header.fleet, "local");
    }

    #[test]
    fn what_is_no_record_or_cannot_be_written_is_refused() {
        let (dir, path) = path();
        let held = open(&path).unwrap();
        assert_eq!(open(&path).unwrap_err(), "another process writes it");
        drop(held);
        assert!(open(&path).is_ok());
        std::fs::write(&path, "root:x:0:0\n").unwrap();
        assert_eq!(open(&path).unwrap_err(), "it is there and is no record");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "root:x:0:0\n");
        assert!(open(dir.path()).is_err());
        assert!(open(Path::new("/dev/full")).is_err());
    }

    #[test]
    fn a_record_that_cannot_be_written_ends_with_a_whole_line_and_stops_nobody() {
        let (_dir, path) = path();
        let mut full = open(&path).unwrap();
        let bytes = full.bytes;
        full.bytes = FILE_BYTES_MAX - 1;
        let lines = full.start();
        while lines.put("{}\n".to_owned()) {
            std::thread::yield_now();
        }
        drop(lines);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);

        full.file = Arc::new(OpenOptions::new().append(true).open("/dev/full").unwrap());
        full.bytes = 0;
        let lines = full.start();
        while lines.put("{}\n".to_owned()) {
            std::thread::yield_now();
        }
    }
}

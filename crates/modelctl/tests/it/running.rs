//! `modelctl` processes that run beside a test, and what may be done to them.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;

use crate::support::{PATIENCE, said};

/// A process whose output is read as it comes. It is killed at the latest with this value.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    logged: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whoever does not care how it ends has dropped the other end.
                let _ = sender.send(line);
            }
        });
        let logged = Arc::<Mutex<Vec<u8>>>::default();
        let logging = Arc::clone(&logged);
        let stderr = thread::spawn(move || {
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stderr.read(&mut part) {
                bytes.extend_from_slice(&part[..count]);
                logging.lock().unwrap().extend_from_slice(&part[..count]);
            }
            bytes
        });
        Self { child, lines, stderr: Some(stderr), logged }
    }

    /// How often this text is in what it has written to stderr so far.
    pub(crate) fn logged(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.logged.lock().unwrap()).matches(text).count()
    }

    /// The next line of stdout, which is JSON.
    pub(crate) fn line(&mut self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// The next line of stdout.
    pub(crate) fn text(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("it said nothing for {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let stderr = self.stderr.take().unwrap().join().unwrap();
                panic!("it has ended: {}", String::from_utf8_lossy(&stderr));
            }
        }
    }

    /// Waits until a pull with `--json` says that so many hundredths are done.
    pub(crate) fn wait_for_percent(&mut self, percent: u64) {
        loop {
            let line = self.line();
            let number = |name: &str| line[name].as_u64().expect("it is under way");
            if number("bytes_done") * 100 >= number("bytes_total") * percent {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`; the process is gone when this returns.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Waits for the end, which has to come within `limit`.
    pub(crate) fn end_within(mut self, limit: Duration) -> Output {
        let deadline = Instant::now() + limit;
        let mut stdout = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => stdout.extend([line.as_str(), "\n"]),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("not ended after {limit:?}: {stdout}"),
            }
        }
        // These processes close stdout by ending.
        let status = self.child.wait().unwrap();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Output { status, stdout: stdout.into_bytes(), stderr }
    }

    pub(crate) fn end(self) -> Output {
        self.end_within(PATIENCE)
    }

    /// Waits for a good end and gives the last line of stdout, which is JSON.
    pub(crate) fn result(self) -> Value {
        let output = self.end();
        assert!(output.status.success(), "{}", said(&output));
        let stdout = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
    }

    /// Waits for a bad end, and says how it was told to people.
    pub(crate) fn failure(self) -> String {
        self.failure_within(PATIENCE)
    }

    /// The same for one that has to come within `limit`.
    pub(crate) fn failure_within(self, limit: Duration) -> String {
        let output = self.end_within(limit);
        assert!(!output.status.success(), "{}", said(&output));
        said(&Output { stdout: Vec::new(), ..output })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

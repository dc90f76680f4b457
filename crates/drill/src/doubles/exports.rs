//! What a double's data plane has to send. Does not own: links, or what is announced.

use std::{
    fs::File,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    thread,
};

use tokio::task::block_in_place;
use transport::Export;

use super::{Behaviour, Seen};
use testbed::artifact::Blob;

struct Faulty {
    file: File,
    bytes: u64,
    behaviour: Behaviour,
    seen: Arc<Seen>,
}

/// A blob as a double of that behaviour lets it be read.
pub(crate) fn export(behaviour: Behaviour, blob: &Blob, seen: Arc<Seen>) -> anyhow::Result<Arc<dyn Export>> {
    let file = match behaviour {
        Behaviour::Old | Behaviour::Accuser => File::open(&blob.path)?,
        Behaviour::WrongBytes | Behaviour::LyingReader | Behaviour::LiesHave | Behaviour::Silent => {
            // A hole of the right size reads as zeros, which no part of the model is.
            let file = tempfile::tempfile()?;
            file.set_len(blob.bytes)?;
            file
        }
    };
    Ok(Arc::new(Faulty { file, bytes: blob.bytes, behaviour, seen }))
}

impl Export for Faulty {
    fn file(&self) -> &File {
        &self.file
    }

    fn is_readable(&self, _: Range<u64>) -> bool {
        self.seen.asked.fetch_add(1, Ordering::Relaxed);
        match self.behaviour {
            Behaviour::LiesHave => false,
            // The fault itself: the request was taken and nothing ever comes of it.
            Behaviour::Silent => block_in_place(|| {
                loop {
                    thread::park();
                }
            }),
            Behaviour::Old | Behaviour::WrongBytes | Behaviour::Accuser | Behaviour::LyingReader => true,
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

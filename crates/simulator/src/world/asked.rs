//! Whom each read of a node was asked of, until it has brought everything. Does not own what is asked of whom.

use swarm::ReadId;

/// Of one node, ascending: a few, the latest of which mostly comes last.
#[derive(Debug, Default)]
pub(super) struct Asked(Vec<(ReadId, u32)>);

impl Asked {
    fn find(&self, read: ReadId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&read, |(read, _)| *read)
    }

    pub(super) fn insert(&mut self, read: ReadId, from: u32) {
        match self.find(read) {
            Ok(at) => self.0[at].1 = from,
            Err(at) => self.0.insert(at, (read, from)),
        }
    }

    pub(super) fn get(&self, read: ReadId) -> Option<u32> {
        self.find(read).ok().map(|at| self.0[at].1)
    }

    pub(super) fn remove(&mut self, read: ReadId) {
        if let Ok(at) = self.find(read) {
            self.0.remove(at);
        }
    }

    /// Whom the reads were asked of that are there, one after another.
    pub(super) fn sources(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|(_, from)| *from)
    }
}

//! Reads in flight. Law: each missing piece is either wanted, or carried by a read that is live.

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use modelpack::piece_map::PieceMap;

use crate::io::{ReadId, Source};

#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) source: Source,
    pub(crate) run: Run,
    /// Bytes of pieces that were not reported yet.
    pub(crate) bytes_left: u64,
    pub(crate) issued: Duration,
    /// How long it should take, as predicted when it was issued.
    pub(crate) expected: Duration,
    /// Not live: its pieces are read elsewhere, though what it still delivers counts.
    pub(crate) is_live: bool,
    pub(crate) is_cancelled: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    /// Ascending: a few dozen, which are begun at the end.
    all: Vec<(ReadId, Read)>,
    next: u64,
    /// Reads that are no longer live but have not ended.
    given_up: usize,
}

impl Reads {
    pub(crate) fn insert(&mut self, read: Read) -> ReadId {
        let id = ReadId(self.next);
        self.next += 1;
        self.all.push((id, read));
        id
    }

    fn at(&self, id: ReadId) -> Option<usize> {
        self.all.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    pub(crate) fn get(&self, id: ReadId) -> Option<&Read> {
        self.at(id).map(|at| &self.all[at].1)
    }

    pub(crate) fn get_mut(&mut self, id: ReadId) -> Option<&mut Read> {
        self.at(id).map(|at| &mut self.all[at].1)
    }

    pub(crate) fn end(&mut self, id: ReadId) -> Option<Read> {
        let (_, read) = self.all.remove(self.at(id)?);
        self.given_up -= usize::from(!read.is_live);
        Some(read)
    }

    /// Marks a read as no longer live; returns its run if it was.
    pub(crate) fn give_up(&mut self, id: ReadId) -> Option<Run> {
        let read = self.get_mut(id).filter(|read| read.is_live)?;
        read.is_live = false;
        let run = read.run;
        self.given_up += 1;
        Some(run)
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up > 0
    }

    pub(crate) fn is_carried(&self, piece: PieceIndex) -> bool {
        self.all.iter().any(|(_, read)| read.is_live && read.run.contains(piece))
    }

    /// Marks those as cancelled that bring nothing any more, now that this piece is here; says which.
    pub(crate) fn cancel_superseded(&mut self, piece: PieceIndex, have: &PieceMap) -> Vec<ReadId> {
        let is_superseded = |read: &Read| {
            read.run.contains(piece)
                && read.bytes_left > 0
                && !read.is_cancelled
                && have.contains_run(read.run)
        };
        let superseded = self.all.iter_mut().filter(|(_, read)| is_superseded(read));
        let cancelled = superseded.map(|(id, read)| {
            read.is_cancelled = true;
            *id
        });
        cancelled.collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReadId, &Read)> {
        self.all.iter().map(|(id, read)| (*id, read))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ReadId, &mut Read)> {
        self.all.iter_mut().map(|(id, read)| (*id, read))
    }
}

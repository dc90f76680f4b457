//! What policies know: who holds which piece, and what is on its way. Does not own what becomes of it.

use std::collections::{BTreeMap, BTreeSet};

use modelpack::layout::PieceIndex;

/// What a node has of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    Nothing,
    Coming,
    Whole,
}

/// All nodes, as far as anybody has noticed. The last one is the origin, which holds everything.
#[derive(Debug)]
pub(super) struct Fleet {
    pieces: u32,
    holdings: Vec<Vec<Holding>>,
    /// Whole pieces at the beginning of the artifact.
    prefixes: Vec<u32>,
    /// (to, piece) → from.
    on_way: BTreeMap<(u32, u32), u32>,
    /// Pieces that are on their way to each.
    coming: Vec<u32>,
    /// Peers that hold each piece or will.
    copies: Vec<u32>,
    is_there: Vec<bool>,
    /// (from, to): something has not left the card of `from` yet.
    leaving: BTreeSet<(u32, u32)>,
}

impl Fleet {
    /// A fleet of so many peers that hold nothing.
    pub(super) fn new(peers: usize, pieces: u32) -> Self {
        let mut holdings = vec![vec![Holding::Nothing; pieces as usize]; peers];
        holdings.push(vec![Holding::Whole; pieces as usize]);
        let mut prefixes = vec![0; peers];
        prefixes.push(pieces);
        Self {
            pieces,
            holdings,
            prefixes,
            on_way: BTreeMap::new(),
            coming: vec![0; peers + 1],
            copies: vec![0; pieces as usize],
            is_there: vec![true; peers + 1],
            leaving: BTreeSet::new(),
        }
    }

    /// How many pieces the artifact has.
    pub(super) fn pieces(&self) -> u32 {
        self.pieces
    }

    /// The number of the origin, which is also how many peers there are.
    pub(super) fn origin(&self) -> u32 {
        u32::try_from(self.holdings.len() - 1).expect("few nodes")
    }

    /// All peers that are there.
    pub(super) fn peers(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.origin()).filter(|peer| self.is_there(*peer))
    }

    /// Whether nobody has noticed that it is dead.
    pub(super) fn is_there(&self, node: u32) -> bool {
        self.is_there[node as usize]
    }

    /// Whether something that it was told to send has not left its card yet.
    pub(super) fn is_sending(&self, node: u32) -> bool {
        self.leaving.iter().any(|(from, _)| *from == node)
    }

    /// Whether some of that is for the other.
    pub(super) fn is_leaving(&self, from: u32, to: u32) -> bool {
        self.leaving.contains(&(from, to))
    }

    /// Whether something that it is to receive has not left its sender's card yet.
    pub(super) fn is_receiving(&self, node: u32) -> bool {
        self.leaving.iter().any(|(_, to)| *to == node)
    }

    /// Whether it holds the piece.
    pub(super) fn holds(&self, node: u32, piece: u32) -> bool {
        self.holdings[node as usize][piece as usize] == Holding::Whole
    }

    /// Whether it neither holds the piece nor has it on its way.
    pub(super) fn wants(&self, node: u32, piece: u32) -> bool {
        self.holdings[node as usize][piece as usize] == Holding::Nothing
    }

    /// So many of the first pieces it holds without a gap.
    pub(super) fn prefix(&self, node: u32) -> u32 {
        self.prefixes[node as usize]
    }

    /// Pieces that are on their way to it.
    pub(super) fn coming(&self, node: u32) -> u32 {
        self.coming[node as usize]
    }

    /// Whether a peer holds the piece or has it on its way.
    pub(super) fn is_known(&self, piece: u32) -> bool {
        self.copies[piece as usize] > 0
    }

    /// Whether it holds everything.
    pub(super) fn is_complete(&self, node: u32) -> bool {
        self.prefix(node) == self.pieces
    }

    /// A node's card has nothing to do: of what it was given, only what is held up further on is leaving still.
    pub(super) fn idle(&mut self, node: u32, is_leaving: impl Fn(u32) -> bool) {
        self.leaving.retain(|(from, to)| *from != node || is_leaving(*to));
    }

    /// A piece is on its way.
    ///
    /// # Panics
    /// If the sender does not hold it, or the receiver does not want it.
    pub(super) fn sent(&mut self, from: u32, to: u32, piece: PieceIndex) {
        assert!(self.holds(from, piece.0), "{from} sends {piece:?}, which it does not hold");
        assert!(self.wants(to, piece.0), "{from} sends {to} the piece {piece:?} again");
        self.holdings[to as usize][piece.0 as usize] = Holding::Coming;
        self.on_way.insert((to, piece.0), from);
        self.leaving.insert((from, to));
        self.coming[to as usize] += 1;
        self.copies[piece.0 as usize] += 1;
    }

    /// A piece has arrived. Says whether somebody waited for it.
    pub(super) fn arrived(&mut self, to: u32, piece: PieceIndex) -> bool {
        if self.on_way.remove(&(to, piece.0)).is_none() {
            return false;
        }
        self.coming[to as usize] -= 1;
        self.holdings[to as usize][piece.0 as usize] = Holding::Whole;
        let held = &self.holdings[to as usize];
        let prefix = &mut self.prefixes[to as usize];
        while held.get(*prefix as usize) == Some(&Holding::Whole) {
            *prefix += 1;
        }
        true
    }

    /// A peer comes that was not there, or is only beginning: it holds so many of the first pieces.
    pub(super) fn came(&mut self, node: u32, pieces: u32) {
        self.is_there[node as usize] = true;
        self.holdings[node as usize].fill(Holding::Nothing);
        self.holdings[node as usize][..pieces as usize].fill(Holding::Whole);
        self.copies[..pieces as usize].iter_mut().for_each(|copies| *copies += 1);
        self.prefixes[node as usize] = pieces;
    }

    /// A node is known to be dead, or has not come yet: what it held is gone, what it sent or was sent does not arrive.
    pub(super) fn lost(&mut self, node: u32) {
        self.is_there[node as usize] = false;
        self.leaving.retain(|(from, to)| *from != node && *to != node);
        let is_hit = |(to, _): &(u32, u32), from: &mut u32| *to == node || *from == node;
        for ((to, piece), _) in self.on_way.extract_if(.., is_hit) {
            self.holdings[to as usize][piece as usize] = Holding::Nothing;
            self.coming[to as usize] -= 1;
            self.copies[piece as usize] -= 1;
        }
        for (copies, holding) in self.copies.iter_mut().zip(&self.holdings[node as usize]) {
            *copies -= u32::from(*holding == Holding::Whole);
        }
    }
}

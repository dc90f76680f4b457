//! One tree as lines of text.
//!
//! Owns: which peers have a line of their own. Does not own: the tree (`trees`).

use std::fmt::Write as _;

use super::trees::{Peer, Tree};
use crate::text;

/// Columns of a line.
const WIDTH: usize = 80;

/// Columns of a name.
const NAME_WIDTH: usize = 32;

/// Peers that serve others and have a line of their own, at most: whole levels of them, as many as fit.
const INTERIOR_MAX: usize = 40;

/// Levels that have their lines even if those are not all that are on them.
const LEVELS_MIN: u32 = 2;

/// Children that serve nobody and have a line of their own, at most; where there are more, one line names them all.
const LEAVES_MAX: usize = 2;

/// Draws a tree.
pub(super) fn draw(tree: &Tree, peers: &[Peer]) -> String {
    let interior: Vec<usize> = tree.order().iter().copied().filter(|peer| tree.is_interior(*peer)).collect();
    let cut = interior.get(INTERIOR_MAX).map_or(u32::MAX, |peer| tree.level(*peer).max(LEVELS_MIN + 1));
    let mut is_shown = vec![false; peers.len()];
    let shown = interior.iter().take(INTERIOR_MAX).take_while(|peer| tree.level(**peer) < cut);
    shown.for_each(|peer| is_shown[*peer] = true);
    let has_racks = peers.iter().any(|peer| peer.place != peers[0].place);
    let has_rates = peers.iter().any(|peer| peer.nic_rate != peers[0].nic_rate);
    let mut picture = Picture { tree, peers, is_shown, has_racks, has_rates, text: String::new() };
    if let Some(entrant) = tree.entrant {
        picture.text.push_str("origin");
        picture.rows(&[entrant], "");
    }
    tree.roots().filter(|root| tree.entrant != Some(*root)).for_each(|root| picture.root(root));
    picture.text
}

struct Picture<'a> {
    tree: &'a Tree,
    peers: &'a [Peer],
    is_shown: Vec<bool>,
    /// Whether they stand in several racks.
    has_racks: bool,
    /// Whether cards differ.
    has_rates: bool,
    text: String,
}

/// What stands on one line.
enum Row {
    Peer(usize),
    /// Those who serve others and have no line.
    More(Vec<usize>),
    Leaves(Vec<usize>),
}

impl Picture<'_> {
    /// Without an origin above them, roots stand at the margin.
    fn root(&mut self, root: usize) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let line = self.peer(root);
        self.text.push_str(&line);
        self.rows(self.tree.children(root), "");
    }

    fn rows(&mut self, children: &[usize], indent: &str) {
        let (interior, leaves): (Vec<usize>, Vec<usize>) =
            children.iter().partition(|child| self.tree.is_interior(**child));
        let (shown, more): (Vec<usize>, Vec<usize>) =
            interior.into_iter().partition(|child| self.is_shown[*child]);
        let mut rows: Vec<Row> = shown.into_iter().map(Row::Peer).collect();
        if !more.is_empty() {
            rows.push(Row::More(more));
        }
        match leaves.len() {
            0..=LEAVES_MAX => rows.extend(leaves.into_iter().map(Row::Peer)),
            _ => rows.push(Row::Leaves(leaves)),
        }
        let last = rows.len();
        for (number, row) in (1..).zip(rows) {
            let (branch, below) = if number == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let start = format!("{indent}{branch}");
            let room = WIDTH.saturating_sub(start.chars().count());
            let line = match &row {
                Row::Peer(peer) => self.peer(*peer),
                Row::More(peers) => self.more(peers),
                Row::Leaves(peers) => self.leaves(peers, room),
            };
            let _ = write!(self.text, "\n{start}{}", text::clipped(&line, room));
            if let Row::Peer(peer) = row {
                self.rows(self.tree.children(peer), &format!("{indent}{below}"));
            }
        }
    }

    fn peer(&self, peer: usize) -> String {
        let Peer { name, nic_rate, place, is_seed, done } = &self.peers[peer];
        let mut line = text::clipped(name, NAME_WIDTH);
        let mut notes = Vec::new();
        if *is_seed {
            notes.push("seed".to_owned());
        }
        if self.has_racks {
            notes.push(text::place(place));
        }
        if self.has_rates {
            notes.push(nic_rate.map_or_else(|| "?".to_owned(), |rate| format!("{}/s", text::bytes(rate))));
        }
        if let Some(done) = done.filter(|_| !is_seed) {
            notes.push(percent(done));
        }
        if !notes.is_empty() {
            let _ = write!(line, "  {}", notes.join(", "));
        }
        line
    }

    fn more(&self, peers: &[usize]) -> String {
        let below: usize = peers.iter().map(|peer| self.tree.below(*peer)).sum();
        format!("… {} more, and {below} below them", peers.len())
    }

    fn leaves(&self, leaves: &[usize], room: usize) -> String {
        let mut line = format!("{} leaves", leaves.len());
        let done = || leaves.iter().filter_map(|leaf| self.peers[*leaf].done);
        let (least, most) = (done().fold(1.0, f64::min), done().fold(0.0, f64::max));
        if done().next().is_some() {
            let _ = write!(line, ", {}", if least < most { between(least, most) } else { percent(most) });
        }
        for (number, leaf) in leaves.iter().enumerate() {
            let name = text::clipped(&self.peers[*leaf].name, NAME_WIDTH);
            let next = format!("{}{name}", if number == 0 { ": " } else { ", " });
            if line.chars().count() + next.chars().count() + 3 > room {
                line.push_str(if number == 0 { "" } else { ", …" });
                break;
            }
            line.push_str(&next);
        }
        line
    }
}

fn percent(done: f64) -> String {
    format!("{:.0} %", (done * 100.0).floor())
}

fn between(least: f64, most: f64) -> String {
    format!("{:.0} to {}", (least * 100.0).floor(), percent(most))
}

#[cfg(test)]
mod tests {
    use planner::Place;

    use super::*;

    fn peers(count: usize) -> Vec<Peer> {
        let peer = |at| Peer {
            name: format!("n{at}"),
            nic_rate: Some(1),
            place: Place::default(),
            is_seed: false,
            done: None,
        };
        (0..count).map(peer).collect()
    }

    #[test]
    fn few_leaves_have_lines_and_many_share_one() {
        let parents = [None, Some(0), Some(0), Some(1), Some(1), Some(1), Some(2), Some(2)];
        let tree = Tree::new(Some(0), parents.to_vec());
        let picture = "\
origin
└─ n0
   ├─ n1
   │  └─ 3 leaves: n3, n4, n5
   └─ n2
      ├─ n6
      └─ n7";
        assert_eq!(draw(&tree, &peers(8)), picture);
    }

    #[test]
    fn what_differs_between_peers_is_said() {
        let mut peers = peers(6);
        (peers[0].is_seed, peers[5].nic_rate) = (true, Some(25_000_000));
        for (peer, done) in peers.iter_mut().zip([1.0, 0.129, 0.5, 0.999, 0.2, 0.0]) {
            peer.done = Some(done);
        }
        let tree = Tree::new(None, vec![None, Some(0), Some(1), Some(1), Some(1), Some(0)]);
        let picture = "\
n0  seed, 1 B/s
├─ n1  1 B/s, 12 %
│  └─ 3 leaves, 20 to 99 %: n2, n3, n4
└─ n5  25.0 MB/s, 0 %";
        assert_eq!(draw(&tree, &peers), picture);
    }

    #[test]
    fn racks_are_named_where_there_are_several() {
        let mut peers = peers(3);
        let rack = |zone: &str, rack: &str| Place { zone: zone.to_owned(), rack: rack.to_owned() };
        (peers[1].place, peers[2].place) = (rack("", "r1"), rack("z", "r2"));
        let tree = Tree::new(Some(0), vec![None, Some(0), Some(1)]);
        assert_eq!(draw(&tree, &peers), "origin\n└─ n0  no rack\n   └─ n1  r1\n      └─ n2  z/r2");
    }

    #[test]
    fn a_large_tree_stays_readable() {
        let parent = |at: usize| at.checked_sub(1).map(|at| at / 3);
        let count = 2000;
        let picture = draw(&Tree::new(Some(0), (0..count).map(parent).collect()), &peers(count));
        let lines: Vec<&str> = picture.lines().collect();
        assert!(lines.len() <= 2 * INTERIOR_MAX + 1, "{picture}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{picture}");
        // 1, 3, 9 and 27 of them have lines; the 81 below those do not fit, and one line stands for each three.
        assert_eq!(lines.iter().filter(|line| line.contains("… 3 more, and ")).count(), 27, "{picture}");
    }
}

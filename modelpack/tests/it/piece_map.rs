//! The piece map against a plain set, and its laws.

use std::collections::BTreeSet;

use modelpack::{
    layout::{PieceIndex, Run},
    piece_map::PieceMap,
};
use proptest::prelude::*;

/// Not a multiple of the word size, so that the last word is partly used.
const COUNT: u32 = 200;

fn map_of(pieces: &BTreeSet<u32>) -> PieceMap {
    let mut map = PieceMap::empty(COUNT);
    for piece in pieces {
        map.insert(PieceIndex(*piece));
    }
    map
}

fn set() -> impl Strategy<Value = BTreeSet<u32>> {
    prop_oneof![
        prop::collection::btree_set(0..COUNT, 0..40),
        (0..COUNT, 0..COUNT).prop_map(|(a, b)| (a.min(b)..a.max(b)).collect()),
        Just((0..COUNT).collect()),
    ]
}

fn union(a: &PieceMap, b: &PieceMap) -> PieceMap {
    let mut out = a.clone();
    out.union(b);
    out
}

proptest! {
    #[test]
    fn union_is_a_commutative_idempotent_monoid(a in set(), b in set(), c in set()) {
        let (x, y, z) = (map_of(&a), map_of(&b), map_of(&c));
        prop_assert_eq!(union(&x, &PieceMap::empty(COUNT)), x.clone());
        prop_assert_eq!(union(&x, &x), x.clone());
        prop_assert_eq!(union(&x, &y), union(&y, &x));
        prop_assert_eq!(union(&union(&x, &y), &z), union(&x, &union(&y, &z)));
        prop_assert_eq!(union(&x, &y), map_of(&(&a | &b)));
        prop_assert_eq!(union(&x, &PieceMap::full(COUNT)), PieceMap::full(COUNT));
    }

    #[test]
    fn says_what_the_set_says(pieces in set(), at in 0..COUNT + 10, len in 0_u32..20) {
        let map = map_of(&pieces);
        prop_assert_eq!(map.len() as usize, pieces.len());
        prop_assert_eq!(map.is_empty(), pieces.is_empty());
        prop_assert_eq!(map.is_full(), pieces.len() == COUNT as usize);
        prop_assert_eq!(map.contains(PieceIndex(at)), pieces.contains(&at));
        prop_assert_eq!(map.contains_run(Run::new(at, at + len)), (at..at + len).all(|piece| pieces.contains(&piece)));
        prop_assert_eq!(map.iter().map(|piece| piece.0).collect::<BTreeSet<_>>(), pieces.clone());
        let missing = (at..COUNT).find(|piece| !pieces.contains(piece)).map(PieceIndex);
        prop_assert_eq!(map.next_missing(PieceIndex(at)), missing);
    }

    #[test]
    fn runs_are_the_map(pieces in set()) {
        let map = map_of(&pieces);
        let runs = map.runs();
        prop_assert!(runs.iter().all(|run| !run.is_empty()));
        prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "maximal and ascending");
        let mut again = PieceMap::empty(COUNT);
        for run in runs {
            again.insert_run(run);
        }
        prop_assert_eq!(again, map);
    }

    #[test]
    fn insert_and_remove_say_whether_they_changed_anything(pieces in set(), piece in 0..COUNT) {
        let mut map = map_of(&pieces);
        prop_assert_eq!(map.insert(PieceIndex(piece)), !pieces.contains(&piece));
        prop_assert!(!map.insert(PieceIndex(piece)));
        prop_assert!(map.remove(PieceIndex(piece)));
        prop_assert!(!map.remove(PieceIndex(piece)));
        let mut without = pieces;
        without.remove(&piece);
        prop_assert_eq!(map, map_of(&without));
    }
}

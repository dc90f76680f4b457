//! Laws of a forest, after any sequence of what can happen to it.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

use proptest::{collection::vec, prelude::*};

use super::*;

/// What happens to a forest, numbers being taken as far as they go.
#[derive(Clone, Debug)]
enum Step {
    Join { weight: u64 },
    Leave(usize),
    Full(usize),
    Root { stripe: usize, at: usize },
    Weigh { at: usize, weight: u64 },
}

/// A forest that is told of each step as a swarm would tell it.
struct Grove {
    forest: Forest,
    members: BTreeMap<Node, (bool, u64)>,
    next: Node,
    roots: usize,
}

impl Grove {
    fn new(stripes: usize) -> Self {
        Self { forest: Forest::new(stripes), members: BTreeMap::new(), next: 0, roots: 0 }
    }

    fn stripes(&self) -> usize {
        self.forest.stripes.len()
    }

    fn budget(&self, weight: u64) -> u64 {
        let wanting = || self.members.values().filter(|(is_child, _)| *is_child).map(|(_, weight)| *weight);
        let sum: u64 = self.members.values().map(|(_, weight)| *weight).sum();
        let taken = wanting().sum::<u64>().saturating_sub(wanting().max().unwrap_or(0));
        weight * (self.stripes() as u64 * taken).div_ceil(sum.max(1)).max(1)
    }

    fn join(&mut self, weight: u64) {
        let node = self.next;
        self.next += 1;
        self.members.insert(node, (true, weight));
        self.forest.insert(node, true, (weight, 0));
        self.weigh();
        if self.members.len() <= self.stripes() {
            // Stripes move to newcomers as long as there are more stripes than members.
            for stripe in (0..self.stripes()).filter(|stripe| stripe % self.members.len() == self.roots) {
                self.forest.set_root(stripe, Some(node));
            }
            self.roots += 1;
            if self.members.len() == 1 {
                (0..self.stripes()).for_each(|stripe| self.forest.set_root(stripe, Some(node)));
            }
        }
        self.forest.hang_all(node);
    }

    fn weigh(&mut self) {
        for (node, (_, weight)) in self.members.clone() {
            self.forest.set_weight(node, weight);
            self.forest.set_budget(node, self.budget(weight));
        }
    }

    fn nth(&self, at: usize) -> Option<Node> {
        self.members.keys().copied().nth(at % self.members.len().max(1))
    }

    fn step(&mut self, step: &Step) {
        self.take(step);
        self.forest.tidy();
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Join { weight } => self.join(weight),
            Step::Leave(at) => {
                let Some(node) = self.nth(at).filter(|_| self.members.len() > 1) else { return };
                self.members.remove(&node);
                self.forest.set_child(node, false);
                for stripe in 0..self.stripes() {
                    if self.forest.root(stripe) == Some(node) {
                        self.forest.set_root(stripe, self.nth(at.wrapping_add(stripe)));
                    }
                }
                self.forest.remove(node);
                self.weigh();
            }
            Step::Full(at) => {
                let Some(node) = self.nth(at) else { return };
                self.members.get_mut(&node).expect("it is there").0 = false;
                self.forest.set_child(node, false);
                self.weigh();
            }
            Step::Root { stripe, at } => {
                let Some(node) = self.nth(at) else { return };
                self.forest.set_root(stripe % self.stripes(), Some(node));
            }
            Step::Weigh { at, weight } => {
                let Some(node) = self.nth(at) else { return };
                self.members.get_mut(&node).expect("it is there").1 = weight;
                self.weigh();
            }
        }
    }

    /// Everybody who wants a stripe hangs under its root, or under one who has everything.
    fn check(&self) {
        for stripe in 0..self.stripes() {
            let at = &self.forest.stripes[stripe];
            let mut loose_load = 0;
            for (node, (is_child, _)) in &self.members {
                let mut steps = 0;
                let mut above = *node;
                while let Some(parent) = self.forest.parent(stripe, above) {
                    assert!(at.inner.children(parent).contains(&above));
                    above = parent;
                    steps += 1;
                    assert!(steps <= self.members.len(), "a circle in stripe {stripe}");
                }
                assert_eq!(self.forest.serves(stripe, *node), at.inner.contains(*node), "{node} in {stripe}");
                if let Some(inner) = at.inner.get(*node) {
                    let load: u64 = inner.children.iter().map(|child| self.forest.weight(*child)).sum();
                    assert_eq!(load, inner.load, "load of {node} in {stripe}");
                    assert_eq!(inner.depth(), steps as u32, "depth of {node} in {stripe}");
                    let is_leaf = |child: &&Node| !at.inner.contains(**child);
                    assert_eq!(inner.children.iter().filter(is_leaf).count(), inner.leaves as usize);
                    let seat = &self.forest.seats[*node as usize];
                    if seat.role == Role::Loose && at.root != Some(*node) {
                        loose_load += inner.load;
                    }
                }
                assert!(
                    self.members.contains_key(&above),
                    "{node} hangs under {above}, which left: {:?}",
                    self.forest.seats[above as usize]
                );
                let is_root = at.root == Some(above) || !self.members.get(&above).expect("it is there").0;
                assert!(!is_child || is_root, "{node} hangs under {above} in {stripe}");
            }
            assert_eq!(loose_load, at.loose_load, "in {stripe}");
        }
        for node in self.forest.loose.iter().chain(self.forest.idle.iter().map(|(_, node)| node)) {
            let seat = &self.forest.seats[*node as usize];
            assert!(
                self.members.contains_key(node),
                "{node} left and may serve: {seat:?} {:?}",
                self.forest.idle
            );
        }
        for (number, stripe) in self.forest.stripes.iter().enumerate() {
            let named =
                stripe.inner.nodes().chain(stripe.spare.iter().chain(&stripe.open).map(|(_, node)| *node));
            for node in named.chain(stripe.root) {
                assert!(
                    self.members.contains_key(&node),
                    "{node} left and is in {number}: {stripe:?} {:?} {:?}",
                    self.forest.seats[node as usize],
                    self.members
                );
                assert!(stripe.inner.contains(node), "{node} does not serve {number}");
            }
        }
        for (node, (_, _)) in &self.members {
            let seat = &self.forest.seats[*node as usize];
            let served: u64 = self
                .forest
                .stripes
                .iter()
                .filter_map(|stripe| stripe.inner.get(*node))
                .map(|inner| inner.load)
                .sum();
            assert_eq!(seat.used, served, "{node}");
        }
    }

    /// (members at home in no stripe or the root of some that serve in two or more, the deepest, what is too much)
    fn shape(&self) -> (usize, u32, u64) {
        let (mut loose, mut over) = (0, 0);
        for node in self.members.keys() {
            let serves = |stripe: &&Stripe| stripe.inner.get(*node).is_some_and(|inner| inner.load > 0);
            let stripes = self.forest.stripes.iter().filter(serves).count();
            let is_root = self.forest.stripes.iter().any(|stripe| stripe.root == Some(*node));
            let seat = &self.forest.seats[*node as usize];
            assert!(is_root || stripes <= 1 || seat.role == Role::Loose, "{node} serves {stripes} stripes");
            loose += usize::from(!is_root && stripes > 1);
            let roots = self.forest.stripes.iter().filter(|stripe| stripe.root == Some(*node)).count();
            over += seat.used.saturating_sub(seat.budget.max(roots as u64 * seat.weight));
        }
        let depths = self.forest.stripes.iter().flat_map(|stripe| stripe.inner.listed());
        (loose, depths.map(|(_, depth)| depth + 1).max().unwrap_or(0), over)
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1_u64..=4).prop_map(|weight| Step::Join { weight: if weight == 4 { 10 } else { 3 } }),
        3 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::Full),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(stripe, at)| Step::Root { stripe, at }),
        1 => (any::<usize>(), 1_u64..20).prop_map(|(at, weight)| Step::Weigh { at, weight }),
    ]
}

proptest! {
    #[test]
    fn a_forest_spans_everybody_after_anything(stripes in 1..=STRIPES, steps in vec(step(), 1..80)) {
        let mut grove = Grove::new(stripes);
        for step in &steps {
            grove.step(step);
            grove.check();
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn shares_hold_and_trees_stay_low_while_equals_come_and_go(
        first in 1_usize..200, steps in vec((any::<bool>(), any::<usize>()), 1..120),
    ) {
        let mut grove = Grove::new(STRIPES);
        (0..first).for_each(|_| grove.join(1));
        let (mut many, most) = (0, 1 + steps.len() / 20);
        for (is_join, at) in steps {
            grove.forest.take_touched();
            grove.step(&if is_join { Step::Join { weight: 1 } } else { Step::Leave(at) });
            let (loose, deepest, over) = grove.shape();
            let touched = grove.forest.take_touched().len();
            prop_assert!(loose <= 3 * STRIPES, "{} loose of {}", loose, grove.members.len());
            prop_assert!(deepest <= 4 + grove.members.len().ilog2(), "{} of {}", deepest, grove.members.len());
            // Where nobody else has anything left, a root gives a little more than its share.
            prop_assert!(over <= STRIPES as u64, "{} too many", over);
            // A tree that is grown anew concerns everybody.
            many += usize::from(touched > 8 * STRIPES);
            prop_assert!(many <= most, "{} of {} touched", touched, grove.members.len());
        }
        grove.check();
    }
}

impl Grove {
    /// Roots are of the fastest card, and share the stripes alike.
    fn crown_fastest(&mut self) {
        let fastest = self.members.values().map(|(_, weight)| *weight).max().unwrap_or(0);
        let of = |(node, (_, weight)): (&Node, &(bool, u64))| (*weight == fastest).then_some(*node);
        let fastest: Vec<Node> = self.members.iter().filter_map(of).collect();
        let mut counts: BTreeMap<Node, usize> = fastest.iter().map(|node| (*node, 0)).collect();
        let mut bare = Vec::new();
        for stripe in 0..self.stripes() {
            let count = self.forest.root(stripe).and_then(|root| counts.get_mut(&root));
            match count.filter(|count| **count < self.forest.stripes.len().div_ceil(fastest.len())) {
                Some(count) => *count += 1,
                None => bare.push(stripe),
            }
        }
        for stripe in bare {
            let (node, count) =
                counts.iter_mut().min_by_key(|(_, count)| **count).expect("somebody is the fastest");
            *count += 1;
            self.forest.set_root(stripe, Some(*node));
        }
    }

    fn come(&mut self, weight: u64) {
        let node = self.next;
        self.next += 1;
        self.members.insert(node, (true, weight));
        self.forest.insert(node, true, (weight, 0));
        self.weigh();
        self.crown_fastest();
        self.forest.hang_all(node);
        self.forest.tidy();
    }

    fn go(&mut self, at: usize) {
        let Some(node) = self.nth(at).filter(|_| self.members.len() > 1) else { return };
        self.members.remove(&node);
        self.forest.set_child(node, false);
        self.crown_fastest();
        self.forest.remove(node);
        self.weigh();
        self.forest.tidy();
    }

    /// Of those who are nobody's root: how many hang under a slower card, and what is sent beyond shares, in children of
    /// the sender's own card.
    fn wrongs(&self) -> (usize, u64) {
        let mut slower = 0;
        for stripe in 0..self.stripes() {
            let parents =
                self.members.keys().filter_map(|node| Some((*node, self.forest.parent(stripe, *node)?)));
            slower +=
                parents.filter(|(node, at)| self.forest.weight(*at) < self.forest.weight(*node)).count();
        }
        let over = |node: &Node| {
            let seat = &self.forest.seats[*node as usize];
            let roots = self.forest.stripes.iter().filter(|stripe| stripe.root == Some(*node)).count() as u64;
            seat.used.saturating_sub(seat.budget.max(roots * seat.weight)).div_ceil(seat.weight)
        };
        (slower, self.members.keys().map(over).sum())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn nobody_hangs_under_a_slower_card(
        first in vec(0_u32..3, 1..90), steps in vec((0_u32..3, any::<bool>(), any::<usize>()), 0..60),
    ) {
        let mut grove = Grove::new(STRIPES);
        for halvings in first {
            grove.come(1000 >> halvings);
        }
        for (halvings, is_join, at) in steps {
            if is_join { grove.come(1000 >> halvings) } else { grove.go(at) }
            let (slower, over) = grove.wrongs();
            prop_assert_eq!(slower, 0, "of {}", grove.members.len());
            // What does not divide evenly is a part of one child for each stripe; and of so many members one may have a bad
            // place before all are planted anew.
            let most = (STRIPES + grove.members.len() / 64) as u64;
            prop_assert!(over <= most, "{} too many of {}", over, grove.members.len());
        }
        grove.check();
    }
}

#[test]
fn a_planted_forest_uses_every_share_once() {
    for count in [1, 2, 3, 16, 17, 18, 40, 100, 257, 1000] {
        let mut grove = Grove::new(STRIPES);
        for node in 0..count {
            grove.members.insert(node, (true, 1));
            grove.forest.insert(node, true, (1, 0));
        }
        grove.weigh();
        for stripe in 0..STRIPES {
            grove.forest.set_root(stripe, Some(stripe as Node % count));
        }
        grove.forest.plant();
        grove.check();
        let (loose, deepest, over) = grove.shape();
        assert!(loose <= STRIPES, "{loose} loose of {count}");
        assert!(deepest <= 2 + count.ilog2().div_ceil(4), "{deepest} deep with {count}");
        assert_eq!(over, 0, "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_planted_forest_asks_no_card_for_more_than_it_does(halvings in vec(0_u32..3, 2..80)) {
        let mut grove = Grove::new(STRIPES);
        for (node, halvings) in (0..).zip(&halvings) {
            let weight = 1000 >> halvings;
            grove.members.insert(node, (true, weight));
            grove.forest.insert(node, true, (weight, 0));
        }
        grove.weigh();
        grove.crown_fastest();
        grove.forest.plant();
        grove.check();
        let (slower, over) = grove.wrongs();
        prop_assert_eq!(slower, 0);
        prop_assert!(over <= STRIPES as u64, "{} too many", over);
        for node in grove.members.keys() {
            let seat = &grove.forest.seats[*node as usize];
            // All of its card but for what does not divide evenly, which is a child or two in one stripe.
            let card = (STRIPES as u64 + 2) * seat.weight;
            prop_assert!(seat.used <= card, "{} sends {} of {}", node, seat.used, card);
        }
    }
}

#[test]
fn a_root_of_two_trees_gives_children_of_the_one_where_it_has_too_many() {
    let steps = [
        Some(98),
        None,
        Some(159),
        None,
        None,
        Some(342),
        Some(6),
        Some(161),
        None,
        None,
        Some(316),
        Some(52),
        Some(95),
        Some(69),
    ];
    let mut grove = Grove::new(STRIPES);
    (0..19).for_each(|_| grove.join(1));
    for at in steps {
        grove.step(&at.map_or(Step::Join { weight: 1 }, Step::Leave));
        let (_, deepest, over) = grove.shape();
        assert!(deepest <= 4 + grove.members.len().ilog2(), "{deepest} of {}", grove.members.len());
        assert_eq!(over, 0);
    }
    grove.check();
}

impl Grove {
    fn of_equals(count: usize) -> Self {
        let mut grove = Self::new(STRIPES);
        (0..count).for_each(|_| grove.step(&Step::Join { weight: 8 }));
        grove
    }

    /// The most stripes that anybody has from one parent.
    fn most_from_one(&self) -> usize {
        let most = |node: &Node| {
            let parents: Vec<Node> =
                (0..STRIPES).filter_map(|stripe| self.forest.parent(stripe, *node)).collect();
            parents.iter().map(|parent| parents.iter().filter(|at| *at == parent).count()).max()
        };
        self.members.keys().filter_map(most).max().unwrap_or(0)
    }
}

#[test]
fn nobody_has_most_of_it_from_one_member_where_few_come_one_by_one() {
    for members in 17..=64 {
        let grove = Grove::of_equals(members);
        assert!(grove.most_from_one() <= 3, "{} stripes among {members}", grove.most_from_one());
        grove.check();
    }
}

#[test]
fn a_card_that_turns_out_slow_moves_few() {
    for members in [24, 48, 64] {
        let mut grove = Grove::of_equals(members);
        let slow = grove.forest.root(3).expect("it has one");
        grove.forest.set_root(3, Some(slow + 1));
        grove.forest.tidy();
        grove.forest.take_touched();
        grove.step(&Step::Weigh { at: slow as usize, weight: 1 });
        let touched = grove.forest.take_touched().len();
        assert!(touched <= members / 2, "{touched} of {members} moved");
        grove.check();
    }
}

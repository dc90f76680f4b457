//! What a fleet may be told that is not so: plans that are wrong, and readers that get something else of the origin than it
//! has. Does not own what comes of it.

use std::time::Duration;

use planner::{Before, Contact, Member as Named, PeerId, PeerPlan, StripeSource};

use super::dice::Dice;
use super::scenario::{Fault, Member, Nature};
use super::world::{World, id_of, number};

/// These have dice of their own, as racks do. This number is such that the seeds that found something before mean what they
/// meant.
const SALT: u64 = 0x5a46;

/// Of a hundred seeds in so many plans are wrong for a while, and in so many nothing but their digest proves blobs.
const PLANS_PERCENT: u64 = 8;
const ROOTLESS_PERCENT: u64 = 8;

/// Readers that get wrong bytes, at most. Each may be elected once, and another repair must remain.
const MISREADERS_MAX: usize = 3;

/// What a seed adds to a fleet. Says whether its artifact has no roots.
pub(super) fn drawn(
    seed: u64,
    (members, core): (&mut [Member], usize),
    (faults, ideal): (&mut Vec<(Duration, Fault)>, Duration),
) -> bool {
    let mut dice = Dice::new(seed ^ SALT);
    let (has_plans, is_rootless) = (dice.percent(PLANS_PERCENT), dice.percent(ROOTLESS_PERCENT));
    if has_plans {
        let lasts = dice.span(Duration::from_millis(5), Duration::from_secs(8));
        let percent = dice.pick(&[20, 50, 100]);
        faults.push((dice.moment(ideal * 3 / 2), Fault::WrongPlans { percent, lasts }));
    }
    // Nobody announces as a seed what has no roots.
    if !is_rootless || members.iter().any(|member| member.is_seed) {
        return false;
    }
    let mut left = dice.index(MISREADERS_MAX + 1);
    for (_, member) in members.iter_mut().enumerate().filter(|(node, _)| *node != core) {
        if left > 0 && member.nature == Nature::Honest && member.origin_ok && dice.percent(50) {
            member.nature = Nature::Misreads { percent: dice.pick(&[2, 20, 100]) };
            left -= 1;
        }
    }
    true
}

impl World<'_> {
    /// What arrives of a plan, while they are wrong.
    pub(super) fn misled(&mut self, mut plan: PeerPlan) -> PeerPlan {
        let Some(percent) = self.wrong_plans.last().map(|(_, percent)| *percent) else { return plan };
        if !self.dice.percent(percent) {
            return plan;
        }
        self.plans_spoiled += 1;
        for part in 0..plan.stripes.len() {
            if self.dice.percent(50) {
                self.spoil(&mut plan, part);
            }
        }
        plan
    }

    /// A parent that does not exist, is gone, has nothing, is the child's own child or itself; an entrant that cannot read
    /// the origin; former entrants that never were.
    fn spoil(&mut self, plan: &mut PeerPlan, part: usize) {
        let nodes = self.scenario.members.len();
        let any = id_of(number(self.dice.index(nodes)), self.scenario.seed);
        let stranger = PeerId::new([0xee; 16]);
        let source = match self.dice.below(5) {
            0 => StripeSource::Parent(stranger),
            1 => StripeSource::Origin,
            2 => StripeSource::None,
            _ => StripeSource::Parent(any),
        };
        let is_named = plan.members.iter().any(|member| member.id == any);
        if !is_named && self.dice.percent(50) {
            let contact = Contact::new("gone:1", "gone");
            plan.members.push(Named { id: any, contact, is_seed: false, is_far: false });
        }
        let epoch = plan.epoch + self.dice.below(3);
        let stripe = &mut plan.stripes[part];
        stripe.source = source;
        stripe.backups = vec![any, stranger];
        stripe.before = vec![Before { peer: any, epoch }];
    }

    pub(super) fn mislead(&mut self, at: usize, percent: u64) {
        self.wrong_plans.push((at, percent));
    }

    /// Plans are right from now on. Whoever was misled hears of it from a scheduler that it comes to anew.
    pub(super) fn lead_right(&mut self, at: usize) {
        self.wrong_plans.retain(|(of, _)| *of != at);
        for node in 0..self.origin() {
            let away = self.dice.moment(Duration::from_millis(20));
            self.session_broken(node, away);
        }
    }
}

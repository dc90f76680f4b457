//! The plan that a fleet begins with. Does not own how it is made (crate `planner`).

use std::collections::BTreeMap;

use planner::PeerPlan;
use swarm::Input;

use super::{Event, World};
use crate::options::Options;

/// What each node is told to do, as it stands when the first piece arrives anywhere.
pub(crate) fn first_plans(options: &Options) -> BTreeMap<u32, PeerPlan> {
    let mut world = World::new(options.clone());
    let mut plans = BTreeMap::new();
    while let Some(event) = world.queue.pop() {
        match &event {
            Event::Input(node, input) => {
                if let Input::Plan(plan) = &**input {
                    plans.insert(*node, plan.clone());
                }
            }
            Event::Crossed(_) => break,
            _ => {}
        }
        world.handle(event);
    }
    plans
}

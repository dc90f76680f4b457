//! What each fault does when it strikes, when it is noticed and when it heals. Does not own when (`scenario`).

use std::time::Duration;

use swarm::Input;

use super::scenario::Fault;
use super::streams::{is_between, scheduler_end};
use super::world::{Event, World, number};

/// Nodes of a set.
fn nodes_of(set: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |node| set >> node & 1 == 1)
}

impl World<'_> {
    pub(super) fn strike(&mut self, at: usize) {
        let (_, fault) = self.scenario.faults[at];
        let now = self.queue.now();
        self.trace.note(now, [u32::MAX; 2], || format!("{fault:?}"));
        match fault {
            Fault::Kill { node } => self.die(number(node)),
            Fault::Leave { node } => self.leave(number(node)),
            Fault::Break { one, other } => {
                let (one, other) = (number(one), number(other));
                self.break_links(|child, parent| [(one, other), (other, one)].contains(&(child, parent)));
            }
            Fault::Session { node, away } => self.session_broken(number(node), away),
            Fault::Partition { noticed, .. } => self.part(at, noticed),
            Fault::Delay { node, by, .. } => self.streams.delay(number(node), by),
            Fault::Stop { node, noticed, .. } => {
                if self.is_alive(number(node)) {
                    self.at(number(node)).stopped.get_or_insert_default();
                }
                self.part(at, noticed);
            }
            Fault::Clock { node, .. } => {
                let held = self.at(number(node)).held.get_or_insert(now);
                *held = (*held).min(now);
            }
            Fault::Disk { node, lasts } => {
                let state = self.at(number(node));
                state.proved_at = state.proved_at.max(now + lasts);
            }
            Fault::SchedulerGone { .. } => self.kill_scheduler(),
            Fault::Double { nodes, .. } => {
                for node in nodes_of(nodes).filter(|node| *node < self.origin()).collect::<Vec<_>>() {
                    self.stray(node);
                }
            }
            Fault::WrongPlans { percent, .. } => self.mislead(at, percent),
            Fault::OriginOut { .. } => self.origin_out(),
            Fault::Refused { node } => {
                // The next read says so.
                self.at(number(node)).origin_ok = false;
                self.oracle.refused(number(node));
            }
        }
        if !fault.lasts().is_zero() {
            self.queue.push(now + fault.lasts(), Event::Heal(at));
        }
    }

    fn part(&mut self, at: usize, noticed: Duration) {
        self.streams.part(at);
        self.hold_bytes();
        self.queue.push(self.queue.now() + noticed, Event::Noticed(at));
    }

    /// Streams across a partition break, if it is still there.
    pub(super) fn noticed(&mut self, at: usize) {
        let (when, fault) = self.scenario.faults[at];
        if when + fault.lasts() <= self.queue.now() {
            return;
        }
        self.break_links(|child, parent| is_between(&fault, child, parent));
        for node in 0..self.origin() {
            let session = self.nodes[node as usize].session;
            if session.is_some_and(|(at, _)| is_between(&fault, node, scheduler_end(at))) {
                self.session_broken(node, Duration::ZERO);
            }
        }
    }

    fn break_links(&mut self, is_broken: impl Fn(u32, u32) -> bool) {
        for parent in 0..self.origin() {
            for (child, generation) in self.at(parent).children.clone() {
                if is_broken(child, parent) {
                    self.broken((child, parent), generation);
                }
            }
        }
    }

    pub(super) fn heal(&mut self, at: usize) {
        let (_, fault) = self.scenario.faults[at];
        self.trace.note(self.queue.now(), [u32::MAX; 2], || format!("is over: {fault:?}"));
        match fault {
            Fault::Partition { .. } => {
                self.join_sides(at);
                self.free_bytes();
            }
            Fault::Stop { node, .. } => {
                self.join_sides(at);
                self.free_bytes();
                if !self.is_held(at, node, |fault| matches!(fault, Fault::Stop { .. })) {
                    self.go_on(number(node));
                }
            }
            Fault::Delay { node, by, .. } => self.streams.hurry(number(node), by),
            Fault::Clock { node, .. } => {
                if !self.is_held(at, node, |fault| matches!(fault, Fault::Clock { .. })) {
                    self.at(number(node)).held = None;
                    self.queue.push(self.queue.now(), Event::Local(number(node), Box::new(Input::Tick)));
                }
            }
            Fault::SchedulerGone { .. } => self.revive_scheduler(),
            Fault::Double { nodes, .. } => {
                for node in nodes_of(nodes).filter(|node| *node < self.origin()).collect::<Vec<_>>() {
                    self.at(node).is_astray = false;
                    self.come_back_soon(node);
                }
            }
            Fault::WrongPlans { .. } => self.lead_right(at),
            Fault::OriginOut { .. } => self.origin_outages -= 1,
            Fault::Kill { .. }
            | Fault::Leave { .. }
            | Fault::Break { .. }
            | Fault::Session { .. }
            | Fault::Disk { .. }
            | Fault::Refused { .. } => {}
        }
    }

    /// Whether another fault of a kind still holds a node.
    fn is_held(&self, at: usize, node: usize, is_kind: impl Fn(&Fault) -> bool) -> bool {
        let now = self.queue.now();
        self.scenario.faults.iter().enumerate().any(|(other, (when, fault))| {
            let of = match fault {
                Fault::Stop { node, .. } | Fault::Clock { node, .. } => Some(*node),
                _ => None,
            };
            other != at && is_kind(fault) && of == Some(node) && *when <= now && *when + fault.lasts() > now
        })
    }

    /// A stopped node takes what has come meanwhile.
    fn go_on(&mut self, node: u32) {
        for event in self.at(node).stopped.take().unwrap_or_default() {
            self.handle(event);
        }
    }
}

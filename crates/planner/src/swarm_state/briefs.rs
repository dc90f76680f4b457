//! What is asked of members as sources, again and again, for each stripe of each other: all of that in one place, and as
//! little of it as can be. Does not own the members (`roster`).

use std::sync::Arc;

use super::roster::{Class, MemberState};
use crate::forest::Node;
use crate::id::PeerId;
use crate::plan::Contact;
use crate::quarantine::Standing;

/// A member as it was sorted last: 32 bytes, so that ten thousand of them stay near a core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brief {
    pub(super) peer: PeerId,
    /// What its card does for this swarm; 0 if that is not known.
    pub(super) rate: u64,
    pub(super) rack: u32,
    pub(super) standing: Standing,
    pub(super) is_slow_card: bool,
    pub(super) is_seed: bool,
    pub(super) has_accusers: bool,
}

/// Those of all members, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Briefs {
    briefs: Vec<Option<Brief>>,
    contacts: Vec<Option<Arc<Contact>>>,
}

impl Briefs {
    /// A member has been sorted, or is not here any more.
    pub(super) fn set(&mut self, node: Node, member: Option<(&MemberState, Class)>) {
        let at = node as usize;
        if self.briefs.len() <= at {
            self.briefs.resize(at + 1, None);
            self.contacts.resize(at + 1, None);
        }
        self.briefs[at] = member.map(|(member, class)| Brief {
            peer: member.peer,
            rate: class.rate,
            rack: u32::try_from(member.rack).expect("fewer racks than members"),
            standing: member.facts.standing,
            is_slow_card: class.is_slow_card,
            is_seed: member.is_seed,
            has_accusers: !member.facts.accusers.is_empty(),
        });
        self.contacts[at] = member.map(|(member, _)| Arc::clone(&member.facts.contact));
    }

    pub(super) fn get(&self, node: Node) -> Option<&Brief> {
        self.briefs.get(node as usize)?.as_ref()
    }

    /// How these are reached, those of them who are here.
    pub(super) fn contacts(&self, nodes: &[Node]) -> impl Iterator<Item = (&Brief, &Arc<Contact>)> {
        let contact = |node: &Node| self.contacts.get(*node as usize)?.as_ref();
        nodes.iter().filter_map(move |node| Some((self.get(*node)?, contact(node)?)))
    }
}

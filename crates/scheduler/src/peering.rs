//! The other schedulers of the fleet: which of them live, and which of those comes before this one.
//!
//! Owns: asking them, and when one counts as dead. Does not own: what follows (`driver`), or the ranking (`planner`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use identity::Security;
use planner::FleetName;
use tokio::{
    sync::mpsc::Sender,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::transport::Channel;
use wire::{
    PROTOCOL_VERSION,
    connection::{dial_scheduler, explain},
    control::{AliveRequest, scheduler_client::SchedulerClient},
    schedulers::Schedulers,
};

use crate::driver::Event;

/// How often each of the others is asked, and how long it may take to answer.
const BEAT: Duration = Duration::from_millis(500);

/// One that has not answered for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(2);

/// Answers in a row after which one lives: peers are not sent to one that comes and goes.
const STEADY: u32 = 2;

/// How often the list is looked up again, where it is a name: in beats.
const LOOK_UP_BEATS: u32 = 10;

/// What a scheduler knows of its fleet's schedulers.
#[derive(Clone, Debug)]
pub struct Peering {
    /// The same list that the peers have. This scheduler may be in it.
    pub schedulers: Schedulers,
    /// HOST:PORT by which peers know this one, if it is not found to be one of the list.
    pub advertised: String,
}

/// This process, as schedulers tell one another apart: they may have several addresses.
pub(crate) type Instance = [u8; 16];

/// One address of the list.
#[derive(Default)]
struct Other {
    channel: Option<Channel>,
    answered: Option<Instant>,
    in_row: u32,
    is_me: bool,
}

impl Other {
    /// Whether it lives at `now`.
    fn is_alive(&self, now: Instant) -> bool {
        !self.is_me
            && self.in_row >= STEADY
            && self.answered.is_some_and(|at| now.saturating_duration_since(at) < DEAD_AFTER)
    }

    fn note(&mut self, answer: Option<Instance>, me: Instance, now: Instant) {
        let Some(instance) = answer else {
            self.channel = None;
            if self.answered.is_none_or(|at| now.saturating_duration_since(at) >= DEAD_AFTER) {
                self.in_row = 0;
            }
            return;
        };
        self.is_me = instance == me;
        self.answered = Some(now);
        self.in_row = self.in_row.saturating_add(1);
    }
}

/// Asks until the event loop has ended, and tells it which living scheduler peers prefer to this one, when that changes.
pub(crate) async fn watch(peering: Peering, security: Security, me: Instance, events: Sender<Event>) {
    let mut others: BTreeMap<String, Other> = BTreeMap::new();
    let mut told = None;
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for beat in 0_u32.. {
        beats.tick().await;
        if beat % LOOK_UP_BEATS == 0 {
            look_up(&peering.schedulers, &mut others).await;
        }
        let security = &security;
        join_all(others.iter_mut().map(|(address, other)| async move {
            let answer = ask(address, other, security).await;
            other.note(answer, me, Instant::now());
        }))
        .await;
        let first = first(peering.schedulers.fleet(), &others, &peering.advertised);
        if first != told {
            tracing::info!(scheduler = first.as_deref().unwrap_or("this one"), "comes first in the fleet");
            if events.send(Event::Outranked(first.clone())).await.is_err() {
                return;
            }
            told = first;
        }
    }
}

async fn look_up(schedulers: &Schedulers, others: &mut BTreeMap<String, Other>) {
    match schedulers.ranked().await {
        Ok(addresses) => {
            others.retain(|address, _| addresses.contains(address));
            for address in addresses {
                others.entry(address).or_default();
            }
        }
        Err(error) => tracing::warn!(%error, "the name of the schedulers does not resolve"),
    }
}

/// The first of the living that comes before this one.
fn first(fleet: FleetName, others: &BTreeMap<String, Other>, advertised: &str) -> Option<String> {
    let now = Instant::now();
    let mine = others.iter().find(|(_, other)| other.is_me).map_or(advertised, |(address, _)| address);
    let alive = others.iter().filter(|(_, other)| other.is_alive(now)).map(|(address, _)| address.clone());
    fleet.rank(alive.collect()).into_iter().next().filter(|first| fleet.prefers(first, mine))
}

/// Its instance, if it answers.
async fn ask(address: &str, other: &mut Other, security: &Security) -> Option<Instance> {
    let ask = async {
        let channel = match other.channel.take() {
            Some(channel) => channel,
            None => dial_scheduler(address, security).await.map_err(|error| explain(&error))?,
        };
        let request = AliveRequest { protocol_version: PROTOCOL_VERSION };
        let reply = SchedulerClient::new(channel.clone()).alive(request).await;
        let reply = reply.map_err(|status| explain(&status))?.into_inner();
        let instance: Instance = reply.instance.try_into().map_err(|_| "it says no instance".to_owned())?;
        other.channel = Some(channel);
        Ok::<_, String>(instance)
    };
    match timeout(BEAT, ask).await {
        Ok(Ok(instance)) => Some(instance),
        Ok(Err(reason)) => {
            tracing::debug!(address, reason, "a scheduler does not answer");
            None
        }
        Err(_) => {
            tracing::debug!(address, "a scheduler does not answer in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lives_after_two_answers_and_is_dead_after_two_seconds() {
        let (mut other, start) = (Other::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        other.note(Some([1; 16]), [0; 16], after(0));
        assert!(!other.is_alive(after(0)));
        other.note(Some([1; 16]), [0; 16], after(500));
        assert!(other.is_alive(after(600)));
        other.note(None, [0; 16], after(1000));
        assert!(other.is_alive(after(2400)), "one late answer is no death");
        assert!(!other.is_alive(after(2500)));
        other.note(None, [0; 16], after(2500));
        other.note(Some([1; 16]), [0; 16], after(3000));
        assert!(!other.is_alive(after(3000)), "it has to answer twice again");
    }

    #[test]
    fn a_scheduler_that_finds_itself_in_the_list_goes_by_that_address() {
        let fleet = FleetName::LOCAL;
        let ranked = fleet.rank(["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(str::to_owned).to_vec());
        let now = Instant::now();
        let other = |is_me| Other { answered: Some(now), in_row: STEADY, is_me, ..Other::default() };
        let others = |me: usize| -> BTreeMap<_, _> {
            ranked.iter().enumerate().map(|(at, address)| (address.clone(), other(at == me))).collect()
        };
        assert_eq!(first(fleet, &others(0), "another:1"), None);
        assert_eq!(first(fleet, &others(2), &ranked[0]), Some(ranked[0].clone()));
        assert_eq!(first(fleet, &others(1), "another:1"), Some(ranked[0].clone()));
    }
}

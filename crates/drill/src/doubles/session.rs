//! A double's stream to the scheduler: it joins as a holder or reader, and may accuse others. Does not own: links to
//! children.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use wire::{
    PROTOCOL_VERSION,
    connection::{MESSAGE_BYTES_MAX, dial},
    control::{
        Complaint, HaveUpdate, Join, Load, PeerHello, PeerToScheduler, Run, peer_to_scheduler::Kind as Said,
        scheduler_client::SchedulerClient, scheduler_to_peer::Kind as Heard,
    },
};

use super::{
    Behaviour, Double,
    reader::{PIECE_INTERVAL, Reader},
};

/// How long it waits before it tries the next scheduler.
const RETRY: Duration = Duration::from_millis(200);

/// How often it says that it lives, and accuses.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// Messages that wait for the network.
const OUTGOING_MAX: usize = 256;

/// Keeps a stream for ever.
pub(crate) async fn run(double: Arc<Double>) {
    for scheduler in double.schedulers.iter().cycle() {
        // Whatever ended it: the next one.
        let _ = once(&double, scheduler).await;
        sleep(RETRY).await;
    }
}

async fn once(double: &Double, scheduler: &str) -> anyhow::Result<()> {
    let channel = dial(scheduler.to_owned(), &double.control).await?;
    let mut client = SchedulerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
    say(&outgoing, Said::Hello(hello(double)))?;
    let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
    let (mut beat, mut pieces) = (interval(HEARTBEAT), interval(PIECE_INTERVAL));
    let (mut others, mut reader) = (BTreeSet::new(), Reader::default());
    loop {
        tokio::select! {
            message = inbound.message() => match message?.and_then(|message| message.kind) {
                Some(Heard::Welcome(_)) => say(&outgoing, Said::Join(join(double)))?,
                Some(Heard::Plan(plan)) => {
                    reader.follow(&plan, &double.claims);
                    others.extend(plan.members.into_iter().map(|member| member.peer_id));
                }
                Some(_) => anyhow::bail!("the scheduler does not take it"),
                None => anyhow::bail!("the stream has ended"),
            },
            _ = beat.tick() => {
                say(&outgoing, Said::Load(Load::default()))?;
                if double.behaviour == Behaviour::Accuser {
                    accuse(double, &others, &outgoing)?;
                }
            }
            _ = pieces.tick(), if double.behaviour == Behaviour::LyingReader => {
                read(double, &reader, &outgoing)?;
            }
        }
    }
}

fn say(outgoing: &mpsc::Sender<PeerToScheduler>, kind: Said) -> anyhow::Result<()> {
    Ok(outgoing.try_send(PeerToScheduler { kind: Some(kind) })?)
}

fn hello(double: &Double) -> PeerHello {
    PeerHello {
        protocol_version: PROTOCOL_VERSION,
        features: double.features(),
        peer_id: double.key.id().to_vec(),
        control_address: double.control_address.clone(),
        name: "double".to_owned(),
        ..PeerHello::default()
    }
}

fn join(double: &Double) -> Join {
    let pieces = double.layout.piece_count();
    let is_reader = double.behaviour == Behaviour::LyingReader;
    Join {
        artifact: double.artifact.id.to_vec(),
        artifact_bytes: double.artifact.bytes(),
        piece_count: pieces,
        origin_ok: is_reader,
        have: if is_reader { Vec::new() } else { vec![Run { start: 0, end: pieces }] },
        ..Join::default()
    }
}

fn read(double: &Double, reader: &Reader, outgoing: &mpsc::Sender<PeerToScheduler>) -> anyhow::Result<()> {
    let signed = (&double.key, &double.artifact.id);
    let Some(piece) = reader.claim(signed, &double.layout, &double.claims) else { return Ok(()) };
    let added = vec![Run { start: piece.0, end: piece.0 + 1 }];
    say(outgoing, Said::Have(HaveUpdate { artifact: double.artifact.id.to_vec(), added }))
}

fn accuse(
    double: &Double,
    others: &BTreeSet<Vec<u8>>,
    outgoing: &mpsc::Sender<PeerToScheduler>,
) -> anyhow::Result<()> {
    for about in others.iter().filter(|other| ***other != double.key.id()) {
        let complaint =
            Complaint { artifact: double.artifact.id.to_vec(), about: about.clone(), ..Complaint::default() };
        say(outgoing, Said::Complaint(complaint))?;
        double.seen.complaints.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

//! Traffic that is none of ours on a card of the fleet. Does not own the play.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::{Fault, NONE, Scene};
use crate::{fleet::Cast, site::SCHEDULERS};

/// Whose card it comes over: it gives way to others.
const HIT: usize = 2;

/// How long the others are given to get what they want, and how long it is then watched what they get. A pull that does
/// not give way lasts longer than both.
const GIVEN: Duration = Duration::from_secs(2);
const WATCHED: Duration = Duration::from_secs(2);

/// What part of all that comes over the card is theirs at least. One connection beside those of seven peers gets less
/// than half of it.
const SHARE_MIN: f64 = 0.5;

pub(crate) fn faults() -> Vec<Fault> {
    vec![Fault {
        name: "others-on-the-card",
        cast: Cast { background: Some(HIT), ..NONE.cast },
        hit: &[HIT],
        begin: Some(talk),
        check: Some(|scene| {
            let share = scene.others_share.context("others talked")?;
            Ok(format!("{:.0} % of what came was theirs", share * 100.0))
        }),
        ..NONE
    }]
}

/// One connection that takes whatever it gets, for a while, over a card that does less meanwhile.
fn talk(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    let hosts = &scene.site.hosts;
    let (listening, listens) = mpsc::channel();
    let read = Arc::new(AtomicU64::new(0));
    let (address, counter) = (hosts.peers[HIT].address, Arc::downgrade(&read));
    // Both end when nobody wants to know any more how much was read.
    let reader = hosts.peers[HIT].spawn(move || {
        let listener = TcpListener::bind((address, 0))?;
        listening.send(listener.local_addr()?).ok();
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 256 << 10];
        while let Some(counter) = counter.upgrade() {
            counter.fetch_add(stream.read(&mut buffer)? as u64, Ordering::Relaxed);
        }
        anyhow::Ok(())
    });
    let at = listens.recv().context("a socket can be opened there")?;
    let writer = hosts.schedulers[0].spawn(move || send(at));
    let look = || {
        let cards = scene.site.network.counters()?;
        anyhow::Ok((read.load(Ordering::Relaxed), cards[SCHEDULERS + HIT].received))
    };
    hosts.peers[HIT].shape(scene.site.shared_rate())?;
    sleep(GIVEN);
    let (others_before, all_before) = look()?;
    sleep(WATCHED);
    let (others, all) = look()?;
    drop(read);
    hosts.peers[HIT].shape(scene.site.rate)?;
    reader.join().ok().context("the thread that reads panicked")???;
    writer.join().ok().context("the thread that sends panicked")???;
    #[expect(clippy::cast_precision_loss, reason = "bytes of two seconds")]
    let share = (others - others_before) as f64 / (all - all_before) as f64;
    scene.others_share = Some(share);
    ensure!(share >= SHARE_MIN, "{:.0} % of what came over the card was others'", share * 100.0);
    Ok(())
}

fn send(to: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![0; 256 << 10];
    while stream.write_all(&buffer).is_ok() {}
    Ok(())
}

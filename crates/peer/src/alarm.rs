//! Waits that are shorter than the runtime's timer can tell, which counts whole milliseconds.
//!
//! Owns: one thread of the process that sleeps until the next of them. Does not own: what is waited for.

use std::{
    collections::BTreeMap,
    sync::{
        LazyLock,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Instant,
};

use tokio::{sync::oneshot, time::sleep_until};

/// Begun by the first wait. Without it, if no thread can be had, waits end by the runtime's timer.
static CLOCK: LazyLock<Option<Sender<Wait>>> = LazyLock::new(|| {
    let (sender, waits) = mpsc::channel();
    thread::Builder::new().name("alarm".to_owned()).spawn(move || wake(&waits)).ok()?;
    Some(sender)
});

struct Wait {
    until: Instant,
    woken: oneshot::Sender<()>,
}

/// Waits until then, to some 0.1 ms.
pub(crate) async fn at(until: tokio::time::Instant) {
    let (woken, wake) = oneshot::channel();
    let is_fine = CLOCK.as_ref().is_some_and(|clock| clock.send(Wait { until: until.into(), woken }).is_ok());
    tokio::select! {
        Ok(()) = wake, if is_fine => {}
        () = sleep_until(until) => {}
    }
    // A test may have stopped the runtime's clock, which then goes by its own timers only.
    if tokio::time::Instant::now() < until {
        sleep_until(until).await;
    }
}

fn wake(waits: &Receiver<Wait>) {
    let mut sleepers: BTreeMap<Instant, Vec<oneshot::Sender<()>>> = BTreeMap::new();
    loop {
        let heard = match sleepers.first_key_value() {
            Some((until, _)) => waits.recv_timeout(until.saturating_duration_since(Instant::now())),
            None => waits.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match heard {
            Ok(Wait { until, woken }) => sleepers.entry(until).or_default().push(woken),
            Err(RecvTimeoutError::Timeout) => {
                let (_, due) = sleepers.pop_first().expect("its time was waited for");
                for woken in due {
                    // One that has given up needs no waking.
                    let _ = woken.send(());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test]
    async fn nobody_is_woken_early_and_each_is_woken() {
        let start = Instant::now();
        let wait = |micros: u64| async move {
            let until = start + Duration::from_micros(micros);
            at(until).await;
            assert!(Instant::now() >= until, "woken early");
            micros
        };
        // One gives up.
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            _ = wait(50_000) => panic!("not yet"),
        }
        let all = async { tokio::join!(wait(20_000), wait(9_000), wait(9_000), wait(0)) };
        assert_eq!(timeout(Duration::from_secs(30), all).await, Ok((20_000, 9_000, 9_000, 0)));
    }
}

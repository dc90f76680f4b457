//! The decisions, without time, files or a network.

use proptest::prelude::*;

use super::*;

const POLL: Duration = Duration::from_mins(1);

fn version(number: u8) -> Sha256Digest {
    Sha256Digest::new([number; 32])
}

fn machine(until: Until) -> Machine {
    Machine::new(Rules { poll: POLL, keep: 1, until, seed: 7 })
}

/// Tells it something and gives all that is to be done.
fn tell(machine: &mut Machine, input: Input) -> Vec<Output> {
    machine.handle(input);
    std::iter::from_fn(|| machine.poll()).collect()
}

/// What is done to bring a version, beside others that stay.
fn pull(number: u8, beside: &[u8]) -> Vec<Output> {
    let kept = beside.iter().chain([&number]).copied().map(version).collect();
    vec![Output::Sweep(kept), Output::Pull(version(number))]
}

/// A machine that has this version in place and waits.
fn settled(number: u8) -> Machine {
    let mut machine = machine(Until::Told);
    tell(&mut machine, Input::Begun(Some(version(number))));
    tell(&mut machine, Input::Resolved(Ok(version(number))));
    assert!(matches!(tell(&mut machine, Input::Ensured(Ok(())))[..], [Output::Wait(_)]));
    machine
}

#[test]
fn a_first_version_is_pulled_put_in_place_and_looked_at_again() {
    let mut machine = machine(Until::Told);
    assert_eq!(tell(&mut machine, Input::Begun(None)), [Output::Resolve]);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(1)))), pull(1, &[]));
    assert_eq!(tell(&mut machine, Input::Pulled(Ok(()))), [Output::Switch(version(1))]);
    let swept = Output::Sweep(vec![version(1)]);
    assert_eq!(tell(&mut machine, Input::Switched(Ok(()))), [swept, Output::Resolve]);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(1)))), [Output::Ensure(version(1))]);
    let waits = tell(&mut machine, Input::Ensured(Ok(())));
    let [Output::Wait(pause)] = waits[..] else { panic!("{waits:?}") };
    assert!((POLL * 9 / 10..=POLL * 11 / 10).contains(&pause), "{pause:?}");
    assert_eq!((machine.live(), machine.stale()), (Some(version(1)), None));
}

#[test]
fn a_tag_that_moved_during_a_pull_is_followed_at_once() {
    let mut machine = settled(1);
    tell(&mut machine, Input::Due);
    tell(&mut machine, Input::Resolved(Ok(version(2))));
    tell(&mut machine, Input::Pulled(Ok(())));
    let swept = Output::Sweep(vec![version(2), version(1)]);
    assert_eq!(tell(&mut machine, Input::Switched(Ok(()))), [swept, Output::Resolve]);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(3)))), pull(3, &[2]));
    tell(&mut machine, Input::Pulled(Ok(())));
    let swept = Output::Sweep(vec![version(3), version(2)]);
    assert_eq!(tell(&mut machine, Input::Switched(Ok(()))), [swept, Output::Resolve]);
}

#[test]
fn without_the_registry_what_is_there_is_served_and_called_stale() {
    let mut machine = machine(Until::Told);
    tell(&mut machine, Input::Begun(Some(version(1))));
    let gone = || Input::Resolved(Err("gone".into()));
    assert_eq!(tell(&mut machine, gone()), [Output::Ensure(version(1))]);
    assert_eq!((machine.live(), machine.stale()), (Some(version(1)), Some("gone")));
    // It asks again soon, then less and less often.
    let mut longest = Duration::ZERO;
    for _ in 0..40 {
        let waits = tell(&mut machine, Input::Ensured(Ok(())));
        let [Output::Wait(pause)] = waits[..] else { panic!("{waits:?}") };
        longest = longest.max(pause);
        assert!(pause >= BACKOFF_MIN / 2 && pause <= POLL, "{pause:?}");
        tell(&mut machine, Input::Due);
        tell(&mut machine, gone());
    }
    assert!(longest > POLL / 2);
    tell(&mut machine, Input::Ensured(Ok(())));
    tell(&mut machine, Input::Due);
    tell(&mut machine, Input::Resolved(Ok(version(1))));
    assert_eq!(machine.stale(), None);
}

#[test]
fn a_version_that_the_server_does_not_take_is_not_tried_again_until_the_tag_moves() {
    let mut machine = settled(1);
    tell(&mut machine, Input::Due);
    tell(&mut machine, Input::Resolved(Ok(version(2))));
    tell(&mut machine, Input::Pulled(Ok(())));
    let refused = Input::Switched(Err(Refused::ForGood("no".into())));
    let swept = Output::Sweep(vec![version(1)]);
    assert_eq!(tell(&mut machine, refused), [swept, Output::Ensure(version(1))]);
    assert_eq!((machine.live(), machine.refused()), (Some(version(1)), Some(version(2))));
    tell(&mut machine, Input::Ensured(Ok(())));
    tell(&mut machine, Input::Due);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(2)))), [Output::Ensure(version(1))]);
    assert_eq!(machine.stale(), Some("no"));
    tell(&mut machine, Input::Ensured(Ok(())));
    tell(&mut machine, Input::Due);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(3)))), pull(3, &[1]));
}

#[test]
fn what_the_server_does_not_take_now_is_tried_again() {
    let mut machine = settled(1);
    tell(&mut machine, Input::Due);
    tell(&mut machine, Input::Resolved(Ok(version(2))));
    tell(&mut machine, Input::Pulled(Ok(())));
    let refused = Input::Switched(Err(Refused::ForNow("down".into())));
    assert_eq!(tell(&mut machine, refused), [Output::Ensure(version(1))]);
    tell(&mut machine, Input::Ensured(Err("down".into())));
    tell(&mut machine, Input::Due);
    assert_eq!(tell(&mut machine, Input::Resolved(Ok(version(2)))), pull(2, &[1]));
}

#[test]
fn an_init_container_ends_with_what_it_can_have() {
    let end = |live: Option<u8>, found: Result<u8, &str>| {
        let mut machine = machine(Until::Present);
        tell(&mut machine, Input::Begun(live.map(version)));
        tell(&mut machine, Input::Resolved(found.map(version).map_err(str::to_owned)))
    };
    assert_eq!(end(Some(1), Ok(1)), [Output::End(Ending::Fresh)]);
    assert_eq!(end(Some(1), Err("gone")), [Output::End(Ending::Stale("gone".into()))]);
    assert_eq!(end(None, Err("gone")), [Output::End(Ending::Failed("gone".into()))]);
    assert_eq!(end(None, Ok(1)), pull(1, &[]));
}

proptest! {
    /// Whatever comes of anything: what is in place was put there and is never swept, no more is kept than may be, and
    /// it never stops.
    #[test]
    fn what_is_in_place_is_never_swept(choices in prop::collection::vec(0_u8..6, 1..200), keep in 0_usize..3) {
        let mut machine = Machine::new(Rules { poll: POLL, keep, until: Until::Told, seed: 1 });
        let mut live = None;
        let mut outputs = tell(&mut machine, Input::Begun(None));
        for choice in choices {
            for output in &outputs {
                if let Output::Sweep(kept) = output {
                    prop_assert!(live.is_none_or(|live| kept.contains(&live)));
                    prop_assert!(kept.len() <= keep.max(1) + 1);
                }
            }
            let is_bad = choice < 2;
            let failed = || "bad".to_owned();
            let input = match outputs.last().expect("there is always something to do") {
                Output::Resolve if is_bad => Input::Resolved(Err(failed())),
                Output::Resolve => Input::Resolved(Ok(version(choice))),
                Output::Pull(_) => Input::Pulled(if is_bad { Err(failed()) } else { Ok(()) }),
                Output::Switch(_) if choice == 0 => Input::Switched(Err(Refused::ForGood(failed()))),
                Output::Switch(_) if is_bad => Input::Switched(Err(Refused::ForNow(failed()))),
                Output::Switch(to) => {
                    live = Some(*to);
                    Input::Switched(Ok(()))
                }
                Output::Ensure(at) => {
                    prop_assert_eq!(Some(*at), live);
                    Input::Ensured(if is_bad { Err(failed()) } else { Ok(()) })
                }
                Output::Wait(_) => Input::Due,
                other => panic!("{other:?}"),
            };
            outputs = tell(&mut machine, input);
            prop_assert_eq!(machine.live(), live);
        }
    }
}

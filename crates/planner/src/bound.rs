//! How fast a distribution can be at all: the fluid bound and the discrete optimum. Does not own measured rates.

mod laws;

use std::time::Duration;

pub use laws::{
    Broadcast, Sink, failed_parent, kept_with_slow_link, late_joiner, origin, origin_readers, sink,
};

/// Copies of the artifact that may leave the origin (DESIGN §9: origin bytes ≤ 1.01 × the artifact).
pub const ORIGIN_COPIES: f64 = 1.01;

/// What a member's network card can do, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Sending.
    pub up: f64,
    /// Receiving.
    pub down: f64,
}

/// Which term of the bound is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The origin must send everything once: `M / u_origin`.
    Origin,
    /// The slowest receiver: `max M / d_i`.
    Receiver,
    /// Everybody's sending together: `N·M / (u_origin + Σ u_i)`.
    Senders,
    /// The peers' sending, as the origin may send only β copies: `(N − β)·M / Σ u_i`.
    OriginBudget,
}

/// The four terms, each as a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// `M / u_origin`.
    pub origin: Duration,
    /// `max M / d_i`.
    pub receiver: Duration,
    /// `N·M / (u_origin + Σ u_i)`.
    pub senders: Duration,
    /// `(N − β)·M / Σ u_i`.
    pub origin_budget: Duration,
}

impl Bound {
    /// The bound on giving `bytes` to everybody in `receivers`. An origin of unknown rate is `None` and binds nothing.
    pub fn new(bytes: u64, origin_up: Option<f64>, receivers: &[Rates]) -> Self {
        Self::with_helpers(bytes, origin_up, receivers, &[])
    }

    /// The same when `helpers` send too, and whether or not they get everything does not matter: the others when only
    /// some are to be done. Racks have a bound of their own, in which each is a member with its uplink as card.
    pub fn with_helpers(bytes: u64, origin_up: Option<f64>, receivers: &[Rates], helpers: &[Rates]) -> Self {
        let up = receivers.iter().chain(helpers).map(|rates| rates.up).sum();
        let down = receivers.iter().map(|rates| rates.down).fold(f64::INFINITY, f64::min);
        Self::of_all(bytes, origin_up, receivers.len() as u64, Rates { up, down })
    }

    /// The bound for `receivers` of which it is known what all send together, and what the slowest receives.
    pub fn of_all(bytes: u64, origin_up: Option<f64>, receivers: u64, all: Rates) -> Self {
        let (bytes, count) = (to_f64(bytes), to_f64(receivers));
        let origin_up = origin_up.unwrap_or(f64::INFINITY);
        let Rates { up: peers_up, down: slowest } = all;
        let beyond_origin = (count - ORIGIN_COPIES).max(0.0);
        Self {
            origin: time(if receivers == 0 { 0.0 } else { bytes }, origin_up),
            receiver: time(bytes, slowest),
            senders: time(count * bytes, origin_up + peers_up),
            origin_budget: time(beyond_origin * bytes, peers_up),
        }
    }

    /// The bound: the largest term, and which one it is (the first named, when equal).
    pub fn binding(&self) -> (Duration, Binding) {
        [
            (self.receiver, Binding::Receiver),
            (self.senders, Binding::Senders),
            (self.origin_budget, Binding::OriginBudget),
        ]
        .into_iter()
        .fold((self.origin, Binding::Origin), |best, term| if term.0 > best.0 { term } else { best })
    }

    /// The bound as a time.
    pub fn time(&self) -> Duration {
        self.binding().0
    }
}

/// The discrete optimum for equal full-duplex network cards: `(k − 1 + ⌈log2(N + 1)⌉) · piece / B`.
pub fn discrete_optimum(piece_count: u32, receivers: u32, piece_bytes: u64, rate: f64) -> Duration {
    if piece_count == 0 || receivers == 0 {
        return Duration::ZERO;
    }
    let depth = u64::from(u32::BITS - receivers.leading_zeros());
    let rounds = u64::from(piece_count) - 1 + depth;
    time(to_f64(rounds) * to_f64(piece_bytes), rate)
}

/// `bytes / rate`, saturating: no rate is slower than for ever, and nothing to send takes no time.
fn time(bytes: f64, rate: f64) -> Duration {
    if bytes <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(bytes / rate).unwrap_or(Duration::MAX)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate of seconds; 53 bits count bytes to 8 PiB exactly"
)]
fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    fn check(origin_up: Option<f64>, receivers: &[Rates], expect: (f64, Binding)) {
        let (time, binding) = Bound::new(1000 * MB, origin_up, receivers).binding();
        assert_eq!(binding, expect.1);
        assert!((time.as_secs_f64() - expect.0).abs() < 1e-6, "{time:?} instead of {} s", expect.0);
    }

    #[test]
    fn each_term_binds_where_it_should() {
        let equal = Rates { up: 100e6, down: 100e6 };
        check(Some(50e6), &[equal; 4], (20.0, Binding::Origin));
        check(Some(1e9), &[equal; 1], (10.0, Binding::Receiver));
        check(None, &[equal; 8], (10.0, Binding::Receiver));
        let fast_down = Rates { up: 10e6, down: 1e9 };
        check(Some(100e6), &[fast_down; 4], (74.75, Binding::OriginBudget));
        let mixed = [Rates { up: 1e9, down: 1e9 }, Rates { up: 1e9, down: 10e6 }];
        check(Some(1e9), &mixed, (100.0, Binding::Receiver));
    }

    #[test]
    fn the_senders_term_binds_when_the_origin_budget_is_not_spent() {
        // 2 receivers, origin 300, peers 40 together: 2·1000/340 = 5.88; origin 3.33; budget 0.99·1000/40 = 24.75.
        let bound = Bound::new(1000 * MB, Some(300e6), &[Rates { up: 20e6, down: 1e9 }; 2]);
        assert!((bound.senders.as_secs_f64() - 2000.0 / 340.0).abs() < 1e-6);
        assert!((bound.origin_budget.as_secs_f64() - 24.75).abs() < 1e-6);
        // One receiver needs no peer at all.
        let alone = Bound::new(1000 * MB, Some(300e6), &[Rates { up: 0.0, down: 1e9 }]);
        assert_eq!(alone.origin_budget, Duration::ZERO);
        assert_eq!(alone.binding().1, Binding::Origin);
        assert_eq!(alone.senders, alone.origin);
    }

    #[test]
    fn nothing_to_do_takes_no_time_and_no_rate_takes_for_ever() {
        assert_eq!(Bound::new(0, Some(1.0), &[]).time(), Duration::ZERO);
        assert_eq!(Bound::new(5, Some(0.0), &[Rates { up: 1.0, down: 1.0 }]).time(), Duration::MAX);
        assert_eq!(Bound::new(5, None, &[]).time(), Duration::ZERO);
    }

    #[test]
    fn discrete_optimum_is_pieces_plus_depth() {
        let rounds = |pieces, receivers| discrete_optimum(pieces, receivers, 1, 1.0).as_secs();
        assert_eq!(rounds(512, 1), 511 + 1);
        assert_eq!(rounds(512, 7), 511 + 3);
        assert_eq!(rounds(512, 8), 511 + 4);
        assert_eq!(rounds(512, 63), 511 + 6);
        assert_eq!(rounds(0, 63), 0);
    }

    /// Members with cards of 1 to 1000 MB/s.
    fn members(max: usize) -> impl Strategy<Value = Vec<Rates>> {
        let rates = (1.0_f64..1000.0, 1.0_f64..1000.0)
            .prop_map(|(up, down)| Rates { up: up * 1e6, down: down * 1e6 });
        proptest::collection::vec(rates, 0..max)
    }

    proptest! {
        #[test]
        fn help_is_never_worse_than_none(
            receivers in members(8), helpers in members(8), more in members(3), origin in 1.0_f64..1000.0,
        ) {
            let bound = |helpers: &[Rates]| Bound::with_helpers(1000 * MB, Some(origin * 1e6), &receivers, helpers);
            let both = [helpers.clone(), more].concat();
            prop_assert!(bound(&both).time() <= bound(&helpers).time());
            prop_assert!(bound(&helpers).time() <= bound(&[]).time());
            prop_assert_eq!(bound(&[]), Bound::new(1000 * MB, Some(origin * 1e6), &receivers));
        }

        #[test]
        fn who_only_helps_is_not_waited_for(
            receivers in members(8), helper in 1.0_f64..1000.0, origin in 1.0_f64..1000.0,
        ) {
            // To receive as well is never faster than only to send.
            let rates = Rates { up: helper * 1e6, down: helper * 1e6 };
            let helping = Bound::with_helpers(1000 * MB, Some(origin * 1e6), &receivers, &[rates]);
            let receiving = Bound::new(1000 * MB, Some(origin * 1e6), &[receivers.clone(), vec![rates]].concat());
            prop_assert!(helping.time() <= receiving.time());
            // And its own speed to receive binds nobody else.
            prop_assert_eq!(helping.receiver, Bound::new(1000 * MB, None, &receivers).receiver);
        }
    }
}

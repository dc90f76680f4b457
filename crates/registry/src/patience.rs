//! How long to wait for a registry and how often to ask it again.
//!
//! Owns: the limits and the pauses between attempts. Does not own: what counts as worth another attempt
//! ([`RegistryError::class`]).

use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use crate::error::{Class, RegistryError};

/// Limits in time of one [`crate::Repository`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often one operation is tried in all.
    pub attempts: u32,
    /// The longest pause after the first failure; it doubles with each further one.
    pub pause_first: Duration,
    /// The longest pause however many failures there were.
    pub pause_max: Duration,
    /// The longest pause a host gets by asking for it (`Retry-After`).
    pub retry_after_max: Duration,
    /// How long nothing at all may move on a connection.
    pub silence_max: Duration,
    /// How long a small answer (manifest, token, config) may take as a whole, so that one byte at a time does not
    /// hold a pull for ever.
    pub small_answer_max: Duration,
    /// How long the answer to a complete upload may take: some registries hash or move the blob first, and 50 GB
    /// take minutes.
    pub upload_commit_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Five pauses that double from 100 ms last 1.5 to 3.1 s together: enough for a frontend that restarts or a
            // moment's overload. Whoever mistyped a port should not wait longer to hear of it.
            attempts: 6,
            // Below 100 ms a burst of equal clients hits the same overload again; above 5 s nothing is gained.
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            // Rate limits speak in minutes. Longer than one and the user should hear of it.
            retry_after_max: Duration::from_mins(1),
            // Three lost packets in a row back off to some seconds; object stores stall for ten under load.
            silence_max: Duration::from_secs(30),
            small_answer_max: Duration::from_mins(2),
            upload_commit_max: Duration::from_mins(10),
        }
    }
}

impl Patience {
    pub(crate) fn attempts(&self) -> Attempts {
        Attempts { patience: *self, failed: 0, damaged: 0 }
    }
}

/// Counts the failures of one operation.
#[derive(Debug)]
pub(crate) struct Attempts {
    patience: Patience,
    failed: u32,
    /// How many of the failures were damaged bytes. One may be an accident on the way; twice it is the copy.
    damaged: u32,
}

impl Attempts {
    /// Waits before the next attempt, or gives the error back if there is none.
    pub(crate) async fn pause_or_fail(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.failed += 1;
        let may_help = match error.class() {
            Class::Retry => true,
            Class::Integrity => {
                self.damaged += 1;
                self.damaged == 1
            }
            Class::Fatal | Class::NotFound | Class::Unauthorized => false,
        };
        if !may_help || self.failed >= self.patience.attempts {
            return Err(error);
        }
        let pause = self.pause(error.retry_after());
        tracing::debug!(attempt = self.failed, ?pause, %error, "asking again");
        sleep(pause).await;
        Ok(())
    }

    /// Half of it is chance, so that clients that failed together come back apart. Never less than the host asked for,
    /// up to the limit of that.
    fn pause(&self, retry_after: Option<Duration>) -> Duration {
        let doublings = (self.failed - 1).min(16);
        let longest = self.patience.pause_max.min(self.patience.pause_first * (1 << doublings));
        let asked = retry_after.unwrap_or_default().min(self.patience.retry_after_max);
        asked + longest.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The value of a `Retry-After` header: seconds, or a date relative to `now`.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// When a hub's `RateLimit` header (draft-ietf-httpapi-ratelimit-headers-09) says that it answers again: `"api";r=0;t=55`
/// once nothing remains.
pub(crate) fn parse_rate_limit(value: &str) -> Option<Duration> {
    let of = |name: &str| {
        let mut parameters = value.split([';', ',']).filter_map(|part| part.split_once('='));
        parameters.find(|(key, _)| key.trim() == name)?.1.trim().parse().ok()
    };
    (of("r")? == 0_u64).then(|| of("t").map(Duration::from_secs))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_retry_after_as_seconds_or_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |value: &str, seconds: Option<u64>| {
            assert_eq!(parse_retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        };
        check("0", Some(0));
        check(" 120 ", Some(120));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:27 GMT", Some(0));
        check("-1", None);
        check("99999999999999999999", None);
        check("soon", None);
    }

    #[test]
    fn reads_when_a_rate_limit_ends() {
        assert_eq!(parse_rate_limit(r#""api";r=0;t=55"#), Some(Duration::from_secs(55)));
        assert_eq!(parse_rate_limit(r#""api"; r=0; t=7"#), Some(Duration::from_secs(7)));
        for value in [r#""api";r=3;t=55"#, r#""api";r=0"#, "r", "", "r=0;t=-1"] {
            assert_eq!(parse_rate_limit(value), None, "{value}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_honour_the_host() {
        let patience = Patience::default();
        let check = |failed, longest: Duration| {
            let attempts = Attempts { patience, failed, damaged: 0 };
            let pauses: Vec<_> = (0..1000).map(|_| attempts.pause(None)).collect();
            assert!(
                pauses.iter().all(|&pause| pause >= longest / 2 && pause <= longest),
                "{failed}: {pauses:?}"
            );
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "by chance");
        };
        check(1, patience.pause_first);
        check(2, patience.pause_first * 2);
        check(5, patience.pause_first * 16);
        check(u32::MAX, patience.pause_max);
        let attempts = Attempts { patience, failed: 1, damaged: 0 };
        assert!(attempts.pause(Some(Duration::from_secs(7))) >= Duration::from_secs(7));
        let capped = attempts.pause(Some(Duration::from_hours(1)));
        assert!(capped <= patience.retry_after_max + patience.pause_first, "{capped:?}");
    }
}

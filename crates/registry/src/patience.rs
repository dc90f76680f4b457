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
            // Five attempts with doubling pauses ride out a restart of a registry's frontend (some seconds); what
            // is down for longer should be said, not hidden.
            attempts: 5,
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

    /// Full jitter: clients that failed together come back apart. Never less than the host asked for, up to the
    /// limit of that.
    fn pause(&self, retry_after: Option<Duration>) -> Duration {
        let doublings = (self.failed - 1).min(16);
        let longest = self.patience.pause_max.min(self.patience.pause_first * (1 << doublings));
        let asked = retry_after.unwrap_or_default().min(self.patience.retry_after_max);
        asked + longest.mul_f64(fastrand::f64())
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

//! What is wrong in a broadcast: which peers are slow, killed, late, busy or lying, and how the network is built.
//!
//! Owns: the flags, what they say, which peers they hit. Does not own: doing it (`acts`), the bound of those that are
//! well (`cast`).

mod acts;
mod cast;
mod foreign;

use std::{fmt, path::PathBuf, str::FromStr};

use clap::Args;
use modelpack::quantity::Rate;

pub(crate) use self::acts::Acts;
pub(crate) use self::cast::{Cast, Role, Terms};

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Whom {
    /// A share of all peers, at least one of them.
    Share(f64),
    /// The peer of that number, from 0.
    Peer(usize),
}

/// Who is hit by what: `WHO@WHAT`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hit<T> {
    pub(crate) whom: Whom,
    pub(crate) by: T,
}

/// A part of a card's rate, below all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factor(pub(crate) f64);

/// When the peers that are well have this share of what they are to have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moment(pub(crate) f64);

/// The faults of one call.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Faults and shapes")]
pub(crate) struct FaultArgs {
    /// Cards that do a part of the rate both ways, unknown to the system, as 10%@0.1 or p3@0.5; repeatable
    #[arg(long, value_name = "WHO@FACTOR")]
    slow: Vec<Hit<Factor>>,
    /// modelctl: peers killed when the others have a share of their bytes, as 10%@50% or p3@50%; repeatable
    #[arg(long, value_name = "WHO@SHARE")]
    kill: Vec<Hit<Moment>>,
    /// modelctl: peers that begin only when the others have a share of their bytes; repeatable
    #[arg(long, value_name = "WHO@SHARE")]
    join: Vec<Hit<Moment>>,
    /// Cards with foreign TCP traffic of that rate each way; repeatable
    #[arg(long, value_name = "WHO@RATE")]
    busy: Vec<Hit<Rate>>,
    /// modelctl: peers that claim to have everything and serve wrong bytes instead of pulling; repeatable
    #[arg(long, value_name = "WHO")]
    corrupt: Vec<Whom>,
    /// The program that plays a peer that serves wrong bytes
    #[arg(long, value_name = "PATH", default_value = "fleet-drill")]
    pub(crate) double: PathBuf,
    /// Peers in so many racks, each with a bridge of its own; the origin is in none
    #[arg(long, value_name = "COUNT")]
    racks: Option<usize>,
    /// How many times what a rack's uplink does its cards do together
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, requires = "racks")]
    oversubscription: f64,
    /// What the origin's card does, instead of the rate of all
    #[arg(long, value_name = "RATE")]
    pub(crate) origin_rate: Option<Rate>,
    /// Another number hits other peers, where a share is hit
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    fault_seed: u64,
}

impl FaultArgs {
    /// The flags that only modelctl's processes can follow, as far as they are given.
    pub(crate) fn of_modelctl(&self) -> Vec<&'static str> {
        let given = [
            ("--kill", !self.kill.is_empty()),
            ("--join", !self.join.is_empty()),
            ("--corrupt", !self.corrupt.is_empty()),
        ];
        given.into_iter().filter_map(|(flag, is_given)| is_given.then_some(flag)).collect()
    }

    /// Every fault of a peer: who, what becomes of it, and in words.
    fn hits(&self) -> Vec<(Whom, Role, String)> {
        let slow = self.slow.iter().map(|hit| (hit.whom, Role::Slow(hit.by), format!("slow {hit}")));
        let kill = self.kill.iter().map(|hit| (hit.whom, Role::Killed(hit.by), format!("kill {hit}")));
        let join = self.join.iter().map(|hit| (hit.whom, Role::Late(hit.by), format!("join {hit}")));
        let busy = self.busy.iter().map(|hit| {
            let mbit = hit.by.0 * 8 / 1_000_000;
            (hit.whom, Role::Busy(hit.by), format!("busy {}@{mbit}mbit", hit.whom))
        });
        let corrupt = self.corrupt.iter().map(|whom| (*whom, Role::Corrupt, format!("corrupt {whom}")));
        slow.chain(kill).chain(join).chain(busy).chain(corrupt).collect()
    }
}

impl FromStr for Whom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.ends_with('%') {
            return percent(text).filter(|share| *share > 0.0).map(Self::Share).ok_or_else(|| {
                format!("`{text}` is not a share of the peers: it is above 0% and at most 100%")
            });
        }
        let number = text.strip_prefix('p').and_then(|number| number.parse::<usize>().ok());
        number
            .and_then(|number| number.checked_sub(1))
            .map(Self::Peer)
            .ok_or_else(|| format!("`{text}` is nobody: it is a share such as `10%`, or a peer such as `p3`"))
    }
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Hit<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whom, by) = text.split_once('@').ok_or("`@` is missing, as in `p3@…`")?;
        Ok(Self { whom: whom.parse()?, by: by.parse().map_err(|error: T::Err| error.to_string())? })
    }
}

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let factor = text.parse().ok().filter(|factor| *factor > 0.0 && *factor < 1.0);
        factor.map(Self).ok_or_else(|| format!("`{text}` is not a factor between 0 and 1"))
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // At the very end there may be no moment at which it is seen.
        percent(text)
            .filter(|share| *share <= MOMENT_MAX)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a moment: it is between 0% and {}%", MOMENT_MAX * 100.0))
    }
}

/// The last moment at which something may happen: a look later everybody might be done.
const MOMENT_MAX: f64 = 0.9;

/// `N%` as a share, between nothing and all.
fn percent(text: &str) -> Option<f64> {
    let share = text.strip_suffix('%')?.parse::<f64>().ok()? / 100.0;
    (0.0..=1.0).contains(&share).then_some(share)
}

impl fmt::Display for Whom {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(out, "{}%", share * 100.0),
            Self::Peer(peer) => write!(out, "p{}", peer + 1),
        }
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}%", self.0 * 100.0)
    }
}

impl<T: fmt::Display> fmt::Display for Hit<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.whom, self.by)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        faults: FaultArgs,
    }

    /// The flags of a call as they are understood.
    pub(crate) fn parse(flags: &str) -> Result<FaultArgs, clap::Error> {
        Cli::try_parse_from(["bench"].into_iter().chain(flags.split_whitespace())).map(|cli| cli.faults)
    }

    #[test]
    fn flags_say_who_is_hit_by_what() {
        let args =
            parse("--slow 10%@0.1 --slow p3@0.5 --kill 25%@50% --busy p1@50mbit --corrupt p2").unwrap();
        let said: Vec<_> = args.hits().into_iter().map(|(_, _, said)| said).collect();
        assert_eq!(said, ["slow 10%@0.1", "slow p3@0.5", "kill 25%@50%", "busy p1@50mbit", "corrupt p2"]);
        assert_eq!(args.slow[1], Hit { whom: Whom::Peer(2), by: Factor(0.5) });
        assert_eq!(args.of_modelctl(), ["--kill", "--corrupt"]);
        assert!(parse("--racks 2 --oversubscription 3 --slow p1@0.1").unwrap().of_modelctl().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            "--slow p0@0.5",
            "--slow 0%@0.5",
            "--slow 101%@0.5",
            "--slow p1@1",
            "--slow p1@0",
            "--slow p1@NaN",
            "--slow p1",
            "--slow 3@0.5",
            "--slow NaN%@0.5",
            "--kill p1@95%",
            "--kill p1@-1%",
            "--kill p1@0.5",
            "--busy p1@x",
            "--corrupt everybody",
            "--oversubscription 3",
        ] {
            assert!(parse(flags).is_err(), "{flags}");
        }
    }
}

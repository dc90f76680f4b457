//! The schedulers of a fleet as people name them, and as both sides rank them.
//!
//! Owns: that an address is written the same way everywhere, and what one name with several addresses means. Does not
//! own: who answers.

use std::{collections::BTreeSet, io, net::SocketAddr, time::Duration};

use identity::Security;
use planner::FleetName;
use tokio::{net::lookup_host, time::timeout};

/// Schedulers of one fleet, at most: two or three are of use, and each probes the others.
pub const SCHEDULERS_MAX: usize = 16;

/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The name by which a process with this identity ranks schedulers.
pub fn fleet_name(security: &Security) -> FleetName {
    match security {
        Security::Plain => FleetName::LOCAL,
        Security::Fleet(identity) => FleetName(identity.fleet_name()),
    }
}

/// `HOST:PORT` as it is written everywhere, from `http://HOST:PORT` or `HOST:PORT`.
pub fn scheduler_address(text: &str) -> Option<String> {
    let authority = text.strip_prefix("http://").unwrap_or(text);
    let authority = authority.strip_suffix('/').unwrap_or(authority).to_ascii_lowercase();
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return (address.port() > 0).then(|| address.to_string());
    }
    let (host, port) = authority.rsplit_once(':')?;
    let is_host = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let port = port.parse::<u16>().ok().filter(|port| *port > 0 && is_host)?;
    Some(format!("{host}:{port}"))
}

/// The schedulers that a process was told of.
#[derive(Clone, Debug)]
pub struct Schedulers {
    fleet: FleetName,
    given: Vec<String>,
}

impl Schedulers {
    /// Of addresses as [`scheduler_address`] writes them. One host name alone stands for each of its addresses.
    pub fn new(security: &Security, given: Vec<String>) -> Self {
        Self { fleet: fleet_name(security), given }
    }

    /// The fleet that they serve.
    pub fn fleet(&self) -> FleetName {
        self.fleet
    }

    /// What the process was told.
    pub fn given(&self) -> &[String] {
        &self.given
    }

    /// Their addresses now, best first.
    ///
    /// # Errors
    /// If the only one has a name that does not resolve.
    pub async fn ranked(&self) -> io::Result<Vec<String>> {
        let addresses = match self.given.as_slice() {
            [name] if name.parse::<SocketAddr>().is_err() => {
                let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the name does not resolve in time");
                let found = timeout(RESOLVE_TIMEOUT, lookup_host(name)).await.map_err(late)??;
                let found: BTreeSet<String> = found.map(|address| address.to_string()).collect();
                found.into_iter().collect()
            }
            given => given.to_vec(),
        };
        let mut ranked = self.fleet.rank(addresses);
        ranked.truncate(SCHEDULERS_MAX);
        Ok(ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_one_way() {
        for (text, expected) in [
            ("http://10.0.0.1:7100/", Some("10.0.0.1:7100")),
            ("10.0.0.1:7100", Some("10.0.0.1:7100")),
            ("http://S1.example.org:07100", Some("s1.example.org:7100")),
            ("http://[0:0::1]:7100", Some("[::1]:7100")),
            ("https://a:1", None),
            ("http://a", None),
            ("http://:1", None),
            ("http://a/b:1", None),
            ("http://a:0", None),
            ("http://user@a:1", None),
        ] {
            assert_eq!(scheduler_address(text).as_deref(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn one_name_is_each_of_its_addresses() {
        let of = |given: &[&str]| {
            Schedulers::new(&Security::Plain, given.iter().map(|at| (*at).to_owned()).collect())
        };
        let found = of(&["localhost:7100"]).ranked().await.expect("every machine has it");
        assert!(!found.is_empty() && found.iter().all(|at| at.parse::<SocketAddr>().is_ok()), "{found:?}");
        let mut two = of(&["localhost:7100", "10.0.0.1:7100"]).ranked().await.expect("nothing to resolve");
        two.sort();
        assert_eq!(two, ["10.0.0.1:7100", "localhost:7100"]);
    }
}

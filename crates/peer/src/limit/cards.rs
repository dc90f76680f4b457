//! What the network cards of this machine have moved, by the kernel's counters.
//!
//! Owns: which interfaces are cards, and where their counters lie. Does not own: what follows from them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Interfaces whose bytes the ports of their RDMA devices count, too (`ARPHRD_INFINIBAND` of `linux/if_arp.h`).
const INFINIBAND: &str = "32";

/// What an RDMA port counts its data in (InfiniBand architecture, volume 1, `PortCounters`).
const RDMA_UNIT: u64 = 4;

/// The network cards of this machine, as `/sys/class/net` and `/sys/class/infiniband` show them. In a container these
/// are its own interfaces, so that traffic of others on the same card is not seen.
#[derive(Clone, Debug)]
pub struct Cards {
    counters: Counters,
    rate: u64,
}

/// Where the cards count what they move.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    /// Files that count bytes, and in which unit.
    sent: Vec<(PathBuf, u64)>,
    received: Vec<(PathBuf, u64)>,
    /// What the links of hardware say that they do together in each direction, in bytes per second.
    stated: Option<u64>,
}

/// What all of them have moved since the machine began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Cards {
    /// Those below `root`, which is `/`: what is hardware, or where there is none in sight every interface but the
    /// loopback. `rate` is what they do in each direction, in bytes per second; by default what their links say.
    ///
    /// # Errors
    /// If there is none, or nobody says what they do.
    pub fn find(root: &Path, rate: Option<u64>) -> io::Result<Self> {
        let counters = Counters::find(root)?;
        let rate = rate.or(counters.stated).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the network cards do not say how fast they are")
        })?;
        Ok(Self { counters, rate })
    }

    /// What they do together in each direction, in bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    pub(super) fn totals(&self) -> io::Result<Totals> {
        self.counters.totals()
    }
}

impl Counters {
    /// Those of the cards below `root`, as [`Cards::find`] looks for them.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn find(root: &Path) -> io::Result<Self> {
        let net = root.join("sys/class/net");
        let all: Vec<PathBuf> = dirs(&net)?.into_iter().filter(|dir| !dir.ends_with("lo")).collect();
        let hardware: Vec<PathBuf> = all.iter().filter(|dir| dir.join("device").exists()).cloned().collect();
        let is_counted_as_rdma = |dir: &PathBuf| read(&dir.join("type")).is_ok_and(|kind| kind == INFINIBAND);
        let interfaces = if hardware.is_empty() { all } else { hardware.clone() };
        let mut cards = Self { sent: Vec::new(), received: Vec::new(), stated: None };
        for dir in interfaces.iter().filter(|dir| !is_counted_as_rdma(dir)) {
            cards.sent.push((dir.join("statistics/tx_bytes"), 1));
            cards.received.push((dir.join("statistics/rx_bytes"), 1));
        }
        let devices = dirs(&root.join("sys/class/infiniband")).unwrap_or_default();
        for port in devices.iter().flat_map(|device| dirs(&device.join("ports")).unwrap_or_default()) {
            let counter = |name: &str| (port.join("counters").join(name), RDMA_UNIT);
            // Devices in software have none.
            if counter("port_xmit_data").0.exists() {
                cards.sent.push(counter("port_xmit_data"));
                cards.received.push(counter("port_rcv_data"));
            }
        }
        if cards.sent.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "this machine has no network card"));
        }
        // The speed that a virtual interface states is made up.
        let speed = |dir: &PathBuf| read(&dir.join("speed")).ok()?.parse::<u64>().ok();
        let stated: u64 = hardware.iter().filter_map(speed).map(|mbit| mbit.saturating_mul(125_000)).sum();
        cards.stated = Some(stated).filter(|rate| *rate > 0);
        Ok(cards)
    }

    /// What the links of hardware say that they do together in each direction, in bytes per second.
    pub(crate) fn stated(&self) -> Option<u64> {
        self.stated
    }

    pub(crate) fn totals(&self) -> io::Result<Totals> {
        let sum = |counters: &[(PathBuf, u64)]| {
            counters.iter().try_fold(0_u64, |sum, (path, unit)| {
                let count: u64 = read(path)?.parse().map_err(io::Error::other)?;
                Ok::<u64, io::Error>(sum.saturating_add(count.saturating_mul(*unit)))
            })
        };
        Ok(Totals { sent: sum(&self.sent)?, received: sum(&self.received)? })
    }
}

fn dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<PathBuf>>>()?;
    // Bonding keeps a file of its own there.
    dirs.retain(|dir| dir.is_dir());
    dirs.sort();
    Ok(dirs)
}

fn read(path: &Path) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    Ok(fs::read_to_string(path).map_err(named)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` of these interfaces: their name, type, speed, bytes sent and received, and whether they are hardware.
    fn sys(interfaces: &[(&str, &str, &str, [u64; 2], bool)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, kind, speed, [sent, received], is_hardware) in interfaces {
            let dir = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(dir.join("statistics")).unwrap();
            fs::write(dir.join("type"), format!("{kind}\n")).unwrap();
            fs::write(dir.join("speed"), format!("{speed}\n")).unwrap();
            fs::write(dir.join("statistics/tx_bytes"), format!("{sent}\n")).unwrap();
            fs::write(dir.join("statistics/rx_bytes"), format!("{received}\n")).unwrap();
            if *is_hardware {
                fs::create_dir(dir.join("device")).unwrap();
            }
        }
        root
    }

    fn port(root: &Path, device: &str, [sent, received]: [u64; 2]) {
        let dir = root.join("sys/class/infiniband").join(device).join("ports/1/counters");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("port_xmit_data"), sent.to_string()).unwrap();
        fs::write(dir.join("port_rcv_data"), received.to_string()).unwrap();
    }

    #[test]
    fn hardware_counts_and_what_stands_on_it_does_not() {
        let root = sys(&[
            ("lo", "772", "", [1000, 1000], false),
            ("bond0", "1", "50000", [70, 7], false),
            ("eth0", "1", "25000", [30, 3], true),
            ("eth1", "1", "25000", [40, 4], true),
        ]);
        fs::write(root.path().join("sys/class/net/bonding_masters"), "bond0").unwrap();
        let cards = Cards::find(root.path(), None).unwrap();
        assert_eq!(cards.totals().unwrap(), Totals { sent: 70, received: 7 });
        assert_eq!(cards.rate(), 50_000 * 125_000);
        assert_eq!(Cards::find(root.path(), Some(9)).unwrap().rate(), 9);
    }

    #[test]
    fn what_goes_over_rdma_counts_once() {
        let root = sys(&[("eth0", "1", "100000", [5, 5], true), ("ib0", "32", "100000", [7, 7], true)]);
        port(root.path(), "mlx5_0", [100, 200]);
        let cards = Cards::find(root.path(), None).unwrap();
        assert_eq!(cards.totals().unwrap(), Totals { sent: 405, received: 805 });
    }

    #[test]
    fn where_no_hardware_is_in_sight_its_own_interfaces_count_and_their_speed_is_no_fact() {
        let root = sys(&[("lo", "772", "", [9, 9], false), ("eth0", "1", "10000", [1, 2], false)]);
        let error = Cards::find(root.path(), None).unwrap_err();
        assert!(error.to_string().contains("how fast"), "{error}");
        let cards = Cards::find(root.path(), Some(125_000_000)).unwrap();
        assert_eq!(cards.totals().unwrap(), Totals { sent: 1, received: 2 });
        let error = Cards::find(sys(&[("lo", "772", "", [9, 9], false)]).path(), Some(1)).unwrap_err();
        assert!(error.to_string().contains("no network card"), "{error}");
    }

    #[test]
    fn a_card_that_is_gone_is_named() {
        let root = sys(&[("eth0", "1", "10000", [1, 2], true)]);
        let cards = Cards::find(root.path(), None).unwrap();
        fs::remove_file(root.path().join("sys/class/net/eth0/statistics/tx_bytes")).unwrap();
        let error = cards.totals().unwrap_err();
        assert!(error.to_string().contains("eth0/statistics/tx_bytes"), "{error}");
    }
}

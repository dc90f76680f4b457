//! What all cards of a namespace have sent and received, in one look that starts no process.
//!
//! Owns: opening and reading the kernel's table. Does not own: whose card is whose.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

use anyhow::{Context as _, anyhow};

use super::inside;

/// The table of the namespace of the thread that opens it, for ever.
const TABLE: &str = "/proc/thread-self/net/dev";

/// What a card has moved, headers and all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came.
    pub received: u64,
    /// Bytes that went.
    pub sent: u64,
}

impl Traffic {
    /// The same as the other end of the cable sees it.
    fn turned(self) -> Self {
        Self { received: self.sent, sent: self.received }
    }
}

/// The table of one namespace, open: it is of that namespace whoever reads it.
#[derive(Debug)]
pub(super) struct Counters(File);

impl Counters {
    /// Opens the table of that namespace.
    pub(super) fn open(namespace: &str) -> anyhow::Result<Self> {
        let there = inside::spawn(namespace.to_owned(), || File::open(TABLE));
        let file = there.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok(Self(file.context("cannot open the counters of the bridge's namespace")?))
    }

    /// What is at the other ends of these cards' cables, in the same order.
    pub(super) fn across(&self, ports: impl Iterator<Item = String>) -> anyhow::Result<Vec<Traffic>> {
        let text = self.read()?;
        let cards: BTreeMap<_, _> = text.lines().filter_map(parse).collect();
        let turned = |port: String| cards.get(port.as_str()).map(|traffic| traffic.turned());
        ports.map(|port| turned(port.clone()).with_context(|| format!("`{port}` is not counted"))).collect()
    }

    fn read(&self) -> anyhow::Result<String> {
        let (mut text, mut buffer) = (Vec::new(), [0; 16 << 10]);
        loop {
            match self.0.read_at(&mut buffer, text.len() as u64)? {
                0 => return String::from_utf8(text).context("the kernel counts in plain text"),
                count => text.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

/// A line `NAME: bytes packets errs drop fifo frame compressed multicast bytes …`, first of what came; none of a heading.
fn parse(line: &str) -> Option<(&str, Traffic)> {
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace();
    let received = numbers.next()?.parse().ok()?;
    let sent = numbers.nth(7)?.parse().ok()?;
    Some((name.trim(), Traffic { received, sent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line = " port3: 1815 16 1 2 3 4 5 6 27001 99 0 0 0 0 0 0";
        assert_eq!(parse(line), Some(("port3", Traffic { received: 1815, sent: 27_001 })));
        for heading in
            ["Inter-|   Receive    |  Transmit", " face |bytes    packets errs", "", "eth0: 1 2 3", "eth0: x"]
        {
            assert_eq!(parse(heading), None, "{heading}");
        }
    }
}

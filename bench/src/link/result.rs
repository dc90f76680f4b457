//! What came of all runs. Does not own the runs.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Check, Dest, LinkArgs, Transport,
    runs::{Measured, Variant},
};
use crate::statistics::{Latencies, Percentiles, median, ratio};

/// Bytes of a gigabyte.
const GB: f64 = 1e9;

/// A link beside others.
#[derive(Debug, Serialize)]
pub(crate) struct LinkResult {
    bench: &'static str,
    transport: &'static str,
    check: &'static str,
    dest: &'static str,
    size: u64,
    /// Bytes per second that the cards were shaped to; null if they were not.
    rate: Option<u64>,
    runs: u32,
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
    /// Of RDMA only.
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma: Option<RdmaNote>,
}

/// How a link over RDMA was made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RdmaNote {
    /// As `DEVICE/PORT`, of the receiver.
    pub(super) rails: Vec<String>,
    pub(super) mtu_bytes: u32,
    pub(super) qps: u8,
    /// Work requests on each of them.
    pub(super) outstanding: u8,
    pub(super) work_bytes: u64,
    /// `direct` or `staged`.
    pub(super) landing: String,
    pub(super) checked: bool,
    /// To map and pin what reads write, which is before the clock starts.
    pub(super) register_seconds: f64,
}

/// What is not there, and why.
#[derive(Debug, Serialize)]
pub(super) struct Skipped {
    name: &'static str,
    why: String,
}

impl Skipped {
    pub(super) fn new(name: &'static str, why: &anyhow::Error) -> Self {
        Self { name, why: format!("{why:#}") }
    }
}

/// One kind: medians over its runs.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: &'static str,
    bytes_per_s: f64,
    /// Of each run, in order: runs of one number were made one after the other.
    runs_bytes_per_s: Vec<f64>,
    /// Null where one process is both sides, and then in the receiver's.
    sender_cpu_s_per_gb: Option<f64>,
    receiver_cpu_s_per_gb: Option<f64>,
    /// Of each run, to compare with.
    #[serde(skip)]
    runs_receiver_cpu_s_per_gb: Vec<f64>,
    sender_syscalls_per_gb: Option<u64>,
    receiver_syscalls_per_gb: Option<u64>,
    /// Bytes per second to iperf3's, the median of the pairs.
    iperf3_ratio: Option<f64>,
    /// Bytes per second to `ib_read_bw`'s, the median of the pairs.
    read_bw_ratio: Option<f64>,
    /// The receiver's CPU to that of receiving and hashing alone, the median of the pairs.
    recv_blake3_cpu_ratio: Option<f64>,
    /// From a read's start to its end, over all runs.
    read: Option<Percentiles>,
    /// From a read's start to when its piece has landed.
    piece: Option<Percentiles>,
}

impl Row {
    pub(super) fn new(variant: Variant, all: &[Measured]) -> Self {
        let gb = |measured: &Measured| bytes(measured) / GB;
        let speeds: Vec<f64> = all.iter().map(|measured| bytes(measured) / measured.seconds).collect();
        let receiver_cpu: Vec<f64> =
            all.iter().filter_map(|measured| Some(measured.receiver_cpu_s? / gb(measured))).collect();
        let sender_cpu: Vec<f64> =
            all.iter().filter_map(|measured| Some(measured.sender_cpu_s? / gb(measured))).collect();
        Self {
            name: variant.name(),
            bytes_per_s: median(&speeds).unwrap_or_default(),
            runs_bytes_per_s: speeds,
            sender_cpu_s_per_gb: median(&sender_cpu),
            receiver_cpu_s_per_gb: median(&receiver_cpu),
            runs_receiver_cpu_s_per_gb: receiver_cpu,
            sender_syscalls_per_gb: None,
            receiver_syscalls_per_gb: None,
            iperf3_ratio: None,
            read_bw_ratio: None,
            recv_blake3_cpu_ratio: None,
            read: percentiles(all, |measured| &measured.read_us),
            piece: percentiles(all, |measured| &measured.piece_us),
        }
    }

    /// Takes the system calls of one run for so many bytes.
    pub(super) fn count_calls(&mut self, sender: Option<u64>, receiver: u64, bytes: u64) {
        let per_gb = |calls: u64| calls.saturating_mul(1_000_000_000) / bytes.max(1);
        self.sender_syscalls_per_gb = sender.map(per_gb);
        self.receiver_syscalls_per_gb = Some(per_gb(receiver));
    }
}

/// Compares every row with the rulers, if they were measured.
fn compare(rows: &mut [Row]) {
    let find = |name| rows.iter().find(|row| row.name == name);
    let fastest = find(Variant::Iperf3.name()).map(|row| row.runs_bytes_per_s.clone());
    let one_sided = find(Variant::ReadBw.name()).map(|row| row.runs_bytes_per_s.clone());
    let leanest = find(Variant::BARE.name()).map(|row| row.runs_receiver_cpu_s_per_gb.clone());
    for row in rows {
        row.iperf3_ratio = fastest.as_ref().and_then(|ruler| in_pairs(&row.runs_bytes_per_s, ruler));
        row.read_bw_ratio = one_sided.as_ref().and_then(|ruler| in_pairs(&row.runs_bytes_per_s, ruler));
        row.recv_blake3_cpu_ratio =
            leanest.as_ref().and_then(|ruler| in_pairs(&row.runs_receiver_cpu_s_per_gb, ruler));
    }
}

/// The median of the ratios of what was measured one after the other.
fn in_pairs(values: &[f64], ruler: &[f64]) -> Option<f64> {
    let ratios: Option<Vec<f64>> =
        values.iter().zip(ruler).map(|(value, ruler)| ratio(*value, *ruler)).collect();
    median(&ratios?)
}

#[expect(clippy::cast_precision_loss, reason = "no file has 2^53 bytes")]
fn bytes(measured: &Measured) -> f64 {
    measured.bytes as f64
}

fn percentiles(all: &[Measured], of: impl Fn(&Measured) -> &Vec<u64>) -> Option<Percentiles> {
    let mut latencies = Latencies::new();
    for micros in all.iter().flat_map(of) {
        latencies.record(Duration::from_micros(*micros));
    }
    Some(latencies.summary()).filter(|summary| summary.count > 0)
}

impl LinkResult {
    pub(super) fn new(args: &LinkArgs, mut rows: Vec<Row>, skipped: Vec<Skipped>) -> Self {
        compare(&mut rows);
        Self {
            bench: "link",
            transport: match args.transport {
                Transport::Tcp => "tcp",
                Transport::Memory => "memory",
                Transport::Rdma => "rdma",
            },
            check: Check::name(args.check),
            dest: match args.dest {
                Dest::Tmpfs => "tmpfs",
                Dest::Disk => "disk",
            },
            size: args.size.0,
            rate: args.rate.map(|rate| rate.0),
            runs: args.runs.get(),
            rows,
            skipped,
            rdma: None,
        }
    }

    /// The same, over RDMA.
    pub(super) fn with_note(self, note: RdmaNote) -> Self {
        Self { rdma: Some(note), ..self }
    }

    fn ruler(&self) -> (&'static str, fn(&Row) -> Option<f64>) {
        match self.rdma {
            None => ("×iperf3", |row| row.iperf3_ratio),
            Some(_) => ("×read_bw", |row| row.read_bw_ratio),
        }
    }
}

impl fmt::Display for LinkResult {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ruler, ratio_of) = self.ruler();
        writeln!(
            out,
            "{:<15} {:>7} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "MB/s", ruler, "CPU s/GB", "CPU s/GB", "×recv+b3", "calls/GB", "calls/GB"
        )?;
        writeln!(
            out,
            "{:<15} {:>7} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "", "", "sender", "receiver", "CPU", "sender", "receiver"
        )?;
        for row in &self.rows {
            let number =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
            let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            writeln!(
                out,
                "{:<15} {:>7.0} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
                row.name,
                row.bytes_per_s / 1e6,
                number(ratio_of(row)),
                number(row.sender_cpu_s_per_gb),
                number(row.receiver_cpu_s_per_gb),
                number(row.recv_blake3_cpu_ratio),
                count(row.sender_syscalls_per_gb),
                count(row.receiver_syscalls_per_gb),
            )?;
        }
        for row in &self.rows {
            if let (Some(read), Some(piece)) = (&row.read, &row.piece) {
                writeln!(out, "{}: read {read}; piece landed {piece}", row.name)?;
            }
        }
        for Skipped { name, why } in &self.skipped {
            writeln!(out, "skipped: {name}: {why}")?;
        }
        write!(out, "{} bytes, {} runs, landed on {}", self.size, self.runs, self.dest)?;
        if let Some(RdmaNote { rails, mtu_bytes, qps, outstanding, landing, .. }) = &self.rdma {
            let rails = rails.join(", ");
            write!(
                out,
                ", {landing}; {rails}, MTU {mtu_bytes}, {qps} QPs, {outstanding} reads outstanding on each"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds: f64, receiver_cpu_s: f64) -> Measured {
        Measured {
            bytes: 2_000_000_000,
            seconds,
            sender_cpu_s: Some(1.0),
            receiver_cpu_s: Some(receiver_cpu_s),
            read_us: vec![100, 200],
            piece_us: Vec::new(),
        }
    }

    #[test]
    fn rows_are_compared_in_pairs() {
        let of = |variant, all: [(f64, f64); 3]| {
            Row::new(variant, &all.map(|(seconds, cpu)| measured(seconds, cpu)))
        };
        let mut rows = [
            // The machine slows down: in pairs it is always half.
            of(Variant::TLS, [(2.0, 3.0), (4.0, 3.0), (20.0, 3.0)]),
            of(Variant::BARE, [(1.0, 2.0), (1.0, 2.0), (1.0, 2.0)]),
            of(Variant::Iperf3, [(1.0, 1.0), (2.0, 1.0), (10.0, 1.0)]),
        ];
        compare(&mut rows);
        let [tls, bare, iperf3] = &rows;
        assert_eq!((tls.iperf3_ratio, tls.recv_blake3_cpu_ratio), (Some(0.5), Some(1.5)));
        assert_eq!((bare.recv_blake3_cpu_ratio, iperf3.iperf3_ratio), (Some(1.0), Some(1.0)));
        assert_eq!((tls.bytes_per_s, tls.receiver_cpu_s_per_gb), (0.5e9, Some(1.5)));
        assert_eq!(tls.read.map(|read| (read.count, read.max_us)), Some((6, 200)));
        assert!(tls.piece.is_none());
        compare(&mut rows[..1]);
        assert_eq!(rows[0].iperf3_ratio, None, "nothing to compare with");
    }

    #[test]
    fn calls_are_counted_per_gigabyte() {
        let mut row = Row::new(Variant::TLS, &[measured(1.0, 1.0)]);
        row.count_calls(None, 500, 250_000_000);
        assert_eq!((row.sender_syscalls_per_gb, row.receiver_syscalls_per_gb), (None, Some(2000)));
    }
}

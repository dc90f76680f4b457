//! What a packet capture of a broadcast shows: no byte of the model, and no key.
//!
//! Owns: capturing, and looking for known bytes in what was captured. Does not own: the broadcast.
//!
//! It is done twice. With `--data-plain` the model must be found, or the search proves nothing.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use rustix::process::Signal;

use testbed::{artifact::Source, model::Model, process::Process};

use crate::{
    broadcast::Broadcast,
    doubles::Behaviour,
    fleet::{Cast, Data, Fleet},
    site::{PEERS, Site},
};

/// The model of a capture: small, since every byte of it crosses the bridge once a peer.
const MODEL_BYTES: u64 = 32 << 20;

/// How many places of the model are looked for, and how many bytes of each: none is there by chance.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: usize = 32;

/// How much of a capture is in memory at a time.
const CHUNK_BYTES: usize = 16 << 20;

/// What tcpdump may buffer, in KiB.
const BUFFER_KIB: &str = "131072";

/// What is looked for.
struct Needle {
    is_model: bool,
    bytes: Vec<u8>,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    model: usize,
    keys: usize,
}

/// Both captures; says what they show.
pub(crate) fn play(site: &Site) -> anyhow::Result<String> {
    let model = Model::new(&site.modelctl, &site.dir, "small", MODEL_BYTES)?;
    let plain = capture(site, &model, Data::Plain).context("with --data-plain")?;
    ensure!(plain.model > 0, "the model is not found where it is sent in clear: the search is blind");
    ensure!(plain.keys == 0, "key material is in clear with --data-plain");
    let encrypted = capture(site, &model, Data::Encrypted)?;
    ensure!(encrypted == Found::default(), "found in clear: {encrypted:?}");
    Ok(format!(
        "nothing in clear; with --data-plain {} of {SAMPLES} places of the model, no key",
        plain.model
    ))
}

fn capture(site: &Site, model: &Model, data: Data) -> anyhow::Result<Found> {
    // A peer by hand, since it can tell the secrets of its links.
    let cast = Cast { data, double: Some(Behaviour::Old), ..Cast::default() };
    let pcap = site.dir.join("capture.pcap");
    let mut tcpdump = record(site, &pcap)?;
    let mut fleet = Fleet::start(site, model, cast)?;
    let mut broadcast = Broadcast::start(&fleet)?;
    broadcast.wait_for(&(0..PEERS).collect::<Vec<_>>())?;
    broadcast.judge(&fleet)?;
    let report = fleet.double_report()?;
    drop(fleet);
    tcpdump.signal(Signal::INT)?;
    tcpdump.wait(Duration::from_secs(30))?;
    let captured = fs::metadata(&pcap)?.len();
    ensure!(captured > model.artifact.bytes(), "the capture is smaller than the model: {captured} bytes");
    let mut needles = key_needles(&fs::read(&site.key)?);
    let secrets = report["secrets"].as_array().context("a double tells its secrets")?;
    ensure!(!secrets.is_empty(), "nobody had a link to the double");
    for secret in secrets {
        let bytes = hex::decode(secret.as_str().unwrap_or_default())?;
        needles.push(Needle { is_model: false, bytes });
    }
    needles.extend(model_needles(&model.source)?);
    let found = search(&pcap, &needles)?;
    fs::remove_file(&pcap)?;
    Ok(found)
}

fn record(site: &Site, pcap: &PathBuf) -> anyhow::Result<Process> {
    let (mut command, interface) = site.network.on_the_bridge(Path::new("tcpdump"));
    // It would otherwise become a user who may not write there.
    command.args(["-Z", "root", "-B", BUFFER_KIB, "-s", "0", "-i", interface, "-w"]).arg(pcap);
    let mut tcpdump = Process::start(command, &site.logs(), "tcpdump")?;
    tcpdump.logged("listening on")?;
    Ok(tcpdump)
}

/// The fleet key as it is, and as people write it.
fn key_needles(file: &[u8]) -> Vec<Needle> {
    let text = String::from_utf8_lossy(file);
    let raw = hex::decode(text.trim()).unwrap_or_else(|_| file.to_vec());
    let hex = hex::encode(&raw);
    let forms = [
        raw.clone(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        BASE64_STANDARD.encode(&raw).into_bytes(),
        BASE64_URL_SAFE_NO_PAD.encode(&raw).into_bytes(),
        file.trim_ascii().to_vec(),
    ];
    forms.into_iter().map(|bytes| Needle { is_model: false, bytes }).collect()
}

/// Places all over the weights.
fn model_needles(source: &Source) -> anyhow::Result<Vec<Needle>> {
    let mut needles = Vec::new();
    let weights: Vec<_> = source.files.iter().filter(|(_, (bytes, _))| *bytes > 1 << 20).collect();
    let per_file = SAMPLES / weights.len() as u64;
    for (path, (bytes, _)) in weights {
        let content = fs::read(source.dir.join(path))?;
        for sample in 0..per_file {
            // Not at the same offset of every piece.
            let at = usize::try_from(bytes / (per_file + 1) * (sample + 1) + sample * 977)?;
            let place = content.get(at..at + SAMPLE_BYTES).context("within the file")?;
            needles.push(Needle { is_model: true, bytes: place.to_vec() });
        }
    }
    Ok(needles)
}

/// How many of the needles are in the file.
fn search(path: &Path, needles: &[Needle]) -> anyhow::Result<Found> {
    let longest = needles.iter().map(|needle| needle.bytes.len()).max().unwrap_or(0);
    // By their first two bytes, so that nearly every place is done with one look.
    let mut by_start: Vec<Vec<usize>> = vec![Vec::new(); 1 << 16];
    for (number, needle) in needles.iter().enumerate() {
        by_start[start_of(&needle.bytes)].push(number);
    }
    let mut is_found = vec![false; needles.len()];
    let (mut file, mut window) = (File::open(path)?, Vec::new());
    loop {
        let count = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut window)?;
        for at in 0..window.len().saturating_sub(1) {
            let here = &window[at..];
            for &number in &by_start[start_of(here)] {
                is_found[number] |= here.starts_with(&needles[number].bytes);
            }
        }
        if count == 0 {
            break;
        }
        // What begins at the end of this chunk ends in the next.
        window.drain(..window.len().saturating_sub(longest));
    }
    let count = |is_model| {
        let both = needles.iter().zip(&is_found);
        both.filter(|(needle, is_found)| **is_found && needle.is_model == is_model).count()
    };
    Ok(Found { model: count(true), keys: count(false) })
}

fn start_of(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needle(bytes: &[u8]) -> Needle {
        Needle { is_model: true, bytes: bytes.to_vec() }
    }

    #[test]
    fn what_spans_two_chunks_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let mut bytes = vec![7; CHUNK_BYTES + 100];
        bytes[CHUNK_BYTES - 3..CHUNK_BYTES + 3].copy_from_slice(b"secret");
        bytes[CHUNK_BYTES + 96..].copy_from_slice(b"last");
        fs::write(&path, bytes).unwrap();
        let needles = [needle(b"secret"), needle(b"last"), needle(b"absent")];
        assert_eq!(search(&path, &needles).unwrap(), Found { model: 2, keys: 0 });
    }
}

//! The peers of a plan that is only imagined, as a file lists them.
//!
//! Owns: the form of that file. Does not own: what is planned for them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
    str::FromStr as _,
};

use anyhow::Context as _;
use modelpack::quantity::Rate;

use planner::Place;

use super::trees::Peer;
use crate::{cli::label, report::Refusal, text};

/// Most peers: as many as one scheduler takes.
const PEERS_MAX: usize = 32_768;

/// Most bytes of the file: a hundred for each peer.
const BYTES_MAX: u64 = 4 << 20;

const HINT: &str =
    "each line is `NAME RATE [zone=Z] [rack=R] [seed]`, as in `node[01-16] 100gbit`; # begins a comment";

/// Reads the list. Seeds come first: they are there before anybody wants anything.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Peer>> {
    let what = || format!("cannot read the peers in `{}`", path.display());
    let mut text = String::new();
    let refused = |message: String| Refusal::usage(message).hint(HINT);
    let unreadable = |error: io::Error| refused(error.to_string());
    let file = File::open(path).map_err(unreadable).with_context(what)?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable).with_context(what)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(refused(format!("it has more than {}", text::bytes(BYTES_MAX)))).with_context(what);
    }
    let mut peers = parse(&text).map_err(refused).with_context(what)?;
    peers.sort_by_key(|peer| !peer.is_seed);
    Ok(peers)
}

fn parse(text: &str) -> Result<Vec<Peer>, String> {
    let (mut peers, mut lines) = (Vec::new(), BTreeMap::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        for peer in of_line(line).map_err(|why| format!("line {number}: {why}"))? {
            if let Some(before) = lines.insert(peer.name.clone(), number) {
                return Err(format!("line {number}: `{}` stands in line {before}, too", peer.name));
            }
            peers.push(peer);
        }
        if peers.len() > PEERS_MAX {
            return Err(format!("line {number}: these are more than {PEERS_MAX} peers"));
        }
    }
    if peers.iter().all(|peer| peer.is_seed) {
        return Err("it lists no peer that would want the artifact".to_owned());
    }
    Ok(peers)
}

fn of_line(line: &str) -> Result<Vec<Peer>, String> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let said = words.next().ok_or_else(|| format!("`{}` has no rate", text::one_line(name)))?;
    let rate = Rate::from_str(said).map_err(|why| format!("`{}` is no rate: {why}", text::one_line(said)))?;
    let (mut place, mut is_seed) = (Place::default(), false);
    for word in words {
        let said = |name: &str| word.strip_prefix(name).filter(|label| !label.is_empty()).map(label);
        let wrong = |why| format!("`{}` is no place: {why}", text::one_line(word));
        match (said("zone="), said("rack=")) {
            (Some(zone), _) if place.zone.is_empty() => place.zone = zone.map_err(wrong)?,
            (_, Some(rack)) if place.rack.is_empty() => place.rack = rack.map_err(wrong)?,
            _ if word == "seed" && !is_seed => is_seed = true,
            _ => return Err(format!("`{}` is not known here", text::one_line(word))),
        }
    }
    let peer = |name| Peer { name, nic_rate: Some(rate.0), place: place.clone(), is_seed, done: None };
    Ok(names(name)?.into_iter().map(peer).collect())
}

/// `node[08-10]` stands for `node08`, `node09` and `node10`.
fn names(name: &str) -> Result<Vec<String>, String> {
    let name = text::one_line(name);
    let Some((head, rest)) = name.split_once('[') else { return Ok(vec![name]) };
    let wrong = || format!("`{name}` is no range of names, as `node[1-64]` is");
    let (range, tail) = rest.split_once(']').ok_or_else(wrong)?;
    let (first, last) = range.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    let (from, to, width) = (number(first)?, number(last)?, first.len());
    if to < from || to - from >= PEERS_MAX {
        return Err(wrong());
    }
    Ok((from..=to).map(|number| format!("{head}{number:0width$}{tail}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<&[&str], &str>) {
        let said = |peer: Peer| {
            let seed = if peer.is_seed { " seed" } else { "" };
            let Place { zone, rack } = &peer.place;
            let at = if *rack == String::new() { String::new() } else { format!(" {zone}/{rack}") };
            format!("{} {}{at}{seed}", peer.name, peer.nic_rate.unwrap_or_default())
        };
        let found = parse(text).map(|peers| peers.into_iter().map(said).collect::<Vec<_>>());
        let expect = expect.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(found, expect.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn each_line_is_a_peer_or_a_range_of_them() {
        check("a 200 # slow\n\n  # none\nb 1GB/s seed\n", Ok(&["a 25000000", "b 1000000000 seed"]));
        check("n[08-10].x 8mbit", Ok(&["n08.x 1000000", "n09.x 1000000", "n10.x 1000000"]));
        check("n[1-1] 8", Ok(&["n1 1000000"]));
        check("a 8 rack=r1\nb 8 seed zone=z rack=r1", Ok(&["a 1000000 /r1", "b 1000000 z/r1 seed"]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let range = "line 1: `n[9-1]` is no range of names, as `node[1-64]` is";
        let units = "line 1: `9ly` is no rate: the units are mbit, gbit, MB/s and GB/s";
        for (text, error) in [
            ("a 1\n\nb", "line 3: `b` has no rate"),
            ("a 9ly", units),
            ("a 1 sed", "line 1: `sed` is not known here"),
            ("a 1 seed x", "line 1: `x` is not known here"),
            ("a 1 rack=", "line 1: `rack=` is not known here"),
            ("a 1 rack=a rack=b", "line 1: `rack=b` is not known here"),
            ("a 1\nb 1\na 1", "line 3: `a` stands in line 1, too"),
            ("n[9-1] 1", range),
            ("n[1-32769] 1", "line 1: `n[1-32769]` is no range of names, as `node[1-64]` is"),
            ("a 1\nn[1-32768] 1", "line 2: these are more than 32768 peers"),
            ("n[1 1", "line 1: `n[1` is no range of names, as `node[1-64]` is"),
            ("", "it lists no peer that would want the artifact"),
            ("a 1 seed", "it lists no peer that would want the artifact"),
        ] {
            check(text, Err(error));
        }
    }
}

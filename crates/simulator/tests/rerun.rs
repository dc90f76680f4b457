//! Records that are played again: what is found in them, and how that is shown.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

use std::process::Command;
use std::time::Duration;

use planner::bound::Bound;
use record::{Entry, Event, Header, Origin, Record, Source, VERSION};
use simulator::policies::Kind;
use simulator::rerun::{Broadcast, Card, End, Play, broadcasts};

const PIECES: u32 = 256;
const BYTES: u64 = (PIECES as u64) << 20;
/// An artifact takes 2.56 s.
const RATE: u64 = 100 << 20;

fn artifact() -> String {
    format!("sha256:{}", "cd".repeat(32))
}

/// A story that is told line by line.
struct Story(Record);

impl Story {
    fn new() -> Self {
        let (fleet, start) = ("local".to_owned(), "2026-11-26T09:20:44Z".to_owned());
        Self(Record { header: Header { record: VERSION, fleet, start }, entries: Vec::new() })
    }

    fn at(&mut self, ms: u64, event: Event) -> &mut Self {
        self.0.entries.push(Entry::new(Duration::from_millis(ms), event));
        self
    }

    fn comes(&mut self, ms: u64, peer: u32, (rate, has): (Option<u64>, u32)) -> &mut Self {
        let (id, name) = (format!("{peer:032x}"), format!("node-{peer}"));
        self.at(ms, Event::Registered { peer, id, name, nic_bytes_per_second: rate });
        let (artifact, bytes, pieces) = (artifact(), BYTES, PIECES);
        self.at(ms, Event::Joined { peer, artifact, bytes, pieces, has, origin_ok: true, seed: false })
    }

    fn has(&mut self, ms: u64, peer: u32, has: u32) -> &mut Self {
        self.at(ms, Event::Progress { peer, artifact: artifact(), has })
    }

    fn finishes(&mut self, ms: u64, peer: u32) -> &mut Self {
        self.at(ms, Event::Finished { peer, artifact: artifact() })
    }

    fn text(&self) -> String {
        let lines = self.0.entries.iter().map(Entry::line);
        std::iter::once(self.0.header.line()).chain(lines).collect()
    }

    fn broadcasts(&self) -> Vec<Broadcast> {
        // As whoever reads the file.
        broadcasts(&record::parse(&self.text()).unwrap().pop().unwrap())
    }
}

/// Four with cards that are declared and one whose is not. One of them leaves, one comes late and one has a half.
fn eventful() -> Story {
    let mut story = Story::new();
    story.comes(1000, 1, (Some(RATE), 0)).comes(1000, 2, (Some(RATE), 0)).comes(1000, 3, (Some(RATE), 0));
    let (sources, because) = (vec![Some(Source::Origin(Origin::Origin))], Vec::new());
    story.at(1000, Event::Planned { peer: 1, artifact: artifact(), epoch: 1, because, sources });
    story.comes(1500, 4, (None, 128)).comes(2000, 5, (Some(RATE), 0));
    story.at(
        2200,
        Event::Load { peer: 4, sent_bytes_per_second: RATE / 2, received_bytes_per_second: RATE / 4 },
    );
    story.has(2280, 1, 128).at(2500, Event::Gone { peer: 3 });
    story.finishes(3700, 1).finishes(3800, 2).finishes(3800, 4).finishes(4800, 5);
    story
}

#[test]
fn a_broadcast_is_found_in_a_record() {
    let all = eventful().broadcasts();
    let [broadcast] = &all[..] else { panic!("{all:?}") };
    let ms = Duration::from_millis;
    assert_eq!((broadcast.begin, broadcast.plans, broadcast.holders), (ms(1000), 1, 0));
    assert_eq!(broadcast.recorded(), Some(ms(3800)));
    let facts = broadcast.members.iter().map(|member| (member.joined, member.has, member.end, member.card));
    let declared = Some(Card::Declared(RATE));
    let expected = [
        (ms(0), 0, End::Finished(ms(2700)), declared),
        (ms(0), 0, End::Finished(ms(2800)), declared),
        (ms(0), 0, End::Left(ms(1500)), declared),
        (ms(500), 128, End::Finished(ms(2800)), Some(Card::Seen(128 * (1 << 20) * 10 / 23))),
        (ms(1000), 0, End::Finished(ms(3800)), declared),
    ];
    assert_eq!(facts.collect::<Vec<_>>(), expected);
    // Half of it in 1.28 s is the best pace that anybody kept.
    assert_eq!(broadcast.origin_rate(), Some(RATE));
}

#[test]
fn what_was_seen_of_a_card_is_the_most_of_it() {
    let mut story = Story::new();
    story.comes(0, 1, (None, 0)).comes(0, 2, (None, 0));
    let (sent, received) = (3 * RATE, RATE);
    story.at(500, Event::Load { peer: 1, sent_bytes_per_second: sent, received_bytes_per_second: received });
    story.finishes(2560, 1).finishes(5120, 2);
    let broadcast = story.broadcasts().pop().unwrap();
    let cards = broadcast.members.iter().map(|member| member.card.unwrap().rate());
    assert_eq!(cards.collect::<Vec<_>>(), [3 * RATE, RATE / 2]);
}

#[test]
fn who_has_everything_is_the_origin_of_the_next_broadcast() {
    let mut story = Story::new();
    story.comes(0, 1, (Some(RATE), 0)).finishes(2600, 1);
    story.comes(9000, 2, (Some(RATE), 0)).comes(9000, 3, (Some(RATE), PIECES)).finishes(10_500, 2);
    let all = story.broadcasts();
    let facts = all.iter().map(|one| (one.begin.as_secs(), one.holders, one.holders_rate));
    assert_eq!(facts.collect::<Vec<_>>(), [(0, 0, None), (9, 2, Some(2 * RATE))]);
    assert_eq!(all[1].members.len(), 1);
}

#[test]
fn a_stream_that_broke_makes_nobody_leave() {
    let mut story = Story::new();
    story.comes(0, 1, (Some(RATE), 0)).comes(0, 2, (Some(RATE), 0)).has(1000, 1, 99);
    story.at(1000, Event::Gone { peer: 1 }).comes(1100, 1, (Some(RATE), 99));
    story.finishes(2600, 1).finishes(2600, 2);
    let broadcast = story.broadcasts().pop().unwrap();
    let end = End::Finished(Duration::from_millis(2600));
    assert!(broadcast.members.iter().all(|member| member.end == end && member.has == 0), "{broadcast:?}");
}

#[test]
fn every_policy_plays_it_to_its_end_and_none_beats_the_bound() {
    let broadcast = eventful().broadcasts().pop().unwrap();
    let play = Play { pieces: 512, quanta: 8, seed: 1, origin_rate: RATE };
    let bound = broadcast.bound(RATE);
    // The one that came after a second, with a card that takes 2.56 s.
    assert_eq!(bound.as_millis(), 3560);
    for kind in Kind::ALL {
        let report = kind.run(&broadcast.options(&play));
        let last = broadcast.last(&report).unwrap_or_else(|| panic!("{kind:?}: {:?}", report.done));
        assert!(last >= bound && last < bound * 2, "{kind:?}: {last:?}");
        assert_eq!(report.done[2], None, "{kind:?}: who left is not waited for");
        let had = report.received[3];
        assert!((128..140).contains(&had), "{kind:?}: {had} pieces to one that lacked half of 256");
    }
}

#[test]
fn a_clean_record_has_the_bound_of_its_fleet() {
    let mut story = Story::new();
    for peer in 0..8 {
        story.comes(0, peer, (Some(RATE), 0));
    }
    for peer in 0..8 {
        story.finishes(2700, peer);
    }
    let broadcast = story.broadcasts().pop().unwrap();
    let rates = planner::bound::Rates { up: 100.0 * f64::from(1 << 20), down: 100.0 * f64::from(1 << 20) };
    let expected = Bound::new(BYTES, Some(rates.up), &[rates; 8]).time();
    assert_eq!(broadcast.bound(RATE), expected);
}

fn rerun(dir: &std::path::Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    let output = command.current_dir(dir).arg("rerun").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code();
    format!("{code:?}\n{}{}", text(output.stdout), text(output.stderr))
}

#[test]
fn what_came_of_it_is_shown() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut story = eventful();
    let mut text = story.text();
    // Another start of the scheduler, in which nobody got far.
    story = Story::new();
    story.comes(250, 1, (None, 0)).has(300, 1, 4);
    text += &story.text();
    std::fs::write(dir.join("shown.jsonl"), &text).unwrap();
    insta::assert_snapshot!(rerun(dir, &["shown.jsonl", "--policy", "chain,binomial", "--policy", "mesh"]));
    insta::assert_snapshot!("json", rerun(dir, &["shown.jsonl", "--policy", "chain", "--json"]));

    std::fs::write(dir.join("bad.jsonl"), text.replacen("\"has\":128", "\"has\":257", 1)).unwrap();
    std::fs::write(dir.join("none.jsonl"), Story::new().text()).unwrap();
    let lines: &[&[&str]] = &[
        &["bad.jsonl"],
        &["none.jsonl"],
        &["absent.jsonl"],
        &[],
        &["shown.jsonl", "--policy", "flood"],
        &["shown.jsonl", "--rate", "1"],
    ];
    let said = lines.iter().map(|args| {
        let said = rerun(dir, args);
        let first: Vec<&str> = said.lines().take_while(|line| !line.starts_with("usage")).collect();
        format!("$ simulator rerun {}\n{}\n", args.join(" "), first.join("\n"))
    });
    insta::assert_snapshot!("refused", said.collect::<String>());
}

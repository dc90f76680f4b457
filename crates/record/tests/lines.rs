//! Lines that are written and read back, and lines that are no part of a record.

use std::time::Duration;

use record::{Cause, Charge, Entry, Event, Header, Origin, Source, VERSION, parse};

fn artifact() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

fn header() -> Header {
    Header { record: VERSION, fleet: "local".to_owned(), start: "2026-11-26T09:20:44Z".to_owned() }
}

fn registered(peer: u32) -> Event {
    let (id, name) = (format!("{peer:032x}"), format!("node-{peer}"));
    Event::Registered { peer, id, name, nic_bytes_per_second: Some(25_000_000) }
}

fn joined(peer: u32, has: u32) -> Event {
    let (artifact, bytes, pieces) = (artifact(), 64 << 20, 64);
    Event::Joined { peer, artifact, bytes, pieces, has, origin_ok: true, seed: false }
}

/// One of each kind.
fn story() -> Vec<Event> {
    let artifact = artifact();
    let sources = vec![Some(Source::Origin(Origin::Origin)), Some(Source::Peer(2)), None];
    vec![
        registered(1),
        registered(2),
        joined(1, 0),
        joined(2, 3),
        Event::Planned {
            peer: 1,
            artifact: artifact.clone(),
            epoch: 7,
            because: vec![Cause::Joined, Cause::Time],
            sources,
        },
        Event::Load { peer: 1, sent_bytes_per_second: 1, received_bytes_per_second: 2 },
        Event::Progress { peer: 1, artifact: artifact.clone(), has: 32 },
        Event::Accused { peer: 2, artifact: artifact.clone(), by: 1, charge: Charge::WrongBytes },
        Event::Finished { peer: 1, artifact: artifact.clone() },
        Event::Left { peer: 1, artifact },
        Event::Gone { peer: 2 },
        registered(2),
    ]
}

fn written(events: Vec<Event>) -> String {
    let entries = (0..).zip(events).map(|(at, event)| Entry::new(Duration::from_micros(at * 1500), event));
    header().line() + &entries.map(|entry| entry.line()).collect::<String>()
}

#[test]
fn what_is_written_is_read() {
    let text = written(story());
    let records = parse(&text).unwrap();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(record.header, header());
    assert_eq!(record.entries.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), story());
    assert_eq!(record.entries[3].at(), Duration::from_micros(4500));
    // Another start of the scheduler begins another record, with numbers of its own.
    assert_eq!(parse(&text.repeat(2)).unwrap(), [record.clone(), record.clone()]);
}

#[test]
fn a_line_is_what_the_protocol_says() {
    let lines: Vec<String> = written(story()).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], r#"{"record":1,"fleet":"local","start":"2026-11-26T09:20:44Z"}"#);
    let digest = artifact();
    let planned = format!(
        r#"{{"seconds":0.006,"event":"planned","peer":1,"artifact":"{digest}","epoch":7,"because":["joined","time"],"sources":["origin",2,null]}}"#
    );
    assert_eq!(lines[5], planned);
}

#[test]
fn what_was_cut_off_or_is_of_a_later_writer_is_skipped() {
    let text = written(vec![registered(1)]);
    let events = |text: &str| parse(text).unwrap().pop().unwrap().entries.len();
    assert_eq!(events(&(text.clone() + r#"{"seconds":1.0,"eve"#)), 1);
    let later = text + r#"{"seconds":1.0,"event":"sang","song":3}"# + "\n";
    let record = parse(&later).unwrap().pop().unwrap();
    assert_eq!(record.entries[1].event, Event::Unknown);
    assert_eq!(parse(""), Ok(Vec::new()));
}

fn check(lines: &[&str], line: usize, why: &str) {
    let text = lines.join("\n") + "\n";
    let error = parse(&text).expect_err(why);
    assert_eq!((error.line, error.why.as_str()), (line, why));
    assert_eq!(error.to_string(), format!("{line}: {why}"));
}

#[test]
fn a_bad_line_is_named() {
    let (head, one) = (header().line(), Entry::new(Duration::from_secs(2), registered(1)).line());
    let (head, one) = (head.trim_end(), one.trim_end());
    let join = Entry::new(Duration::from_secs(3), joined(1, 0)).line();
    let join = join.trim_end();
    check(&[one], 1, "a record begins with its header");
    check(&[head, "plans"], 2, "expected value");
    check(&[head, ""], 2, "EOF while parsing a value");
    check(&[r#"{"record":9,"fleet":"local","start":""}"#], 1, "it is of version 9, and this reads version 1");
    check(&[r#"{"record":1}"#], 1, "missing field `fleet`");
    check(&[head, r#"{"seconds":1.0,"event":"gone"}"#], 2, "missing field `peer`");
    check(&[head, one, r#"{"seconds":1.0,"event":"gone","peer":1}"#], 3, "1 seconds come after 2");
    check(&[head, one, one], 3, "peer 1 is there already");
    check(&[head, join], 2, "peer 1 has not registered");
    let progress = |has: u32, artifact: &str| {
        format!(r#"{{"seconds":4.0,"event":"progress","peer":1,"artifact":"{artifact}","has":{has}}}"#)
    };
    check(&[head, one, &progress(1, "sha256:00")], 3, "nobody has joined `sha256:00`");
    check(&[head, one, join, &progress(65, &artifact())], 4, "65 pieces, of an artifact that has 64");
    let other = join.replace("\"has\":0", "\"has\":70");
    check(&[head, one, &other], 3, "70 of 64 pieces, of an artifact that has 64");
    let other = join.replace("sha256:", "md5:");
    let why =
        format!("digest `{}` does not use the algorithm `sha256`", artifact().replace("sha256:", "md5:"));
    check(&[head, one, &other], 3, &why);
}

//! The network against the textbook: progressive filling.

#![expect(clippy::cast_precision_loss, reason = "the numbers of a test are small")]

use super::*;

impl From<Served> for u32 {
    fn from(served: Served) -> Self {
        served.0
    }
}

/// Max-min fair rates by progressive filling: all rates rise together until a station is full; those through it stop.
fn progressive_filling(capacities: &[f64], paths: &[Vec<u32>]) -> Vec<f64> {
    let mut rates = vec![0.0; paths.len()];
    let mut fixed = vec![false; paths.len()];
    while fixed.iter().any(|fixed| !fixed) {
        let through = |station: usize, at: usize| paths[at].iter().any(|hop| *hop as usize == station);
        let share = |station: usize| {
            let used: f64 = (0..paths.len()).filter(|at| through(station, *at)).map(|at| rates[at]).sum();
            let open = (0..paths.len()).filter(|at| !fixed[*at] && through(station, *at)).count();
            if open == 0 { f64::INFINITY } else { (capacities[station] - used) / open as f64 }
        };
        let (tightest, step) = (0..capacities.len())
            .map(|station| (station, share(station)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap();
        for at in 0..paths.len() {
            if !fixed[at] {
                rates[at] += step;
            }
        }
        for (at, path) in paths.iter().enumerate() {
            fixed[at] |= path.iter().any(|hop| *hop as usize == tightest);
        }
    }
    rates
}

#[test]
fn endless_flows_get_the_rates_of_progressive_filling() {
    const NODES: u32 = 6;
    let mut random = 1_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..40 {
        let mut network = Network::new(4);
        let mut queue: Queue<u32> = Queue::new(Duration::ZERO);
        // A card up and down for each, then one rack uplink for those of an even number.
        let capacities: Vec<u64> = (0..=2 * NODES).map(|_| (1 + next(4)) * 100 * PIECE_BYTES).collect();
        for capacity in &capacities {
            network.add_station(*capacity);
        }
        let mut pairs = Vec::new();
        for from in 0..NODES {
            for to in 0..NODES {
                if from != to && next(3) > 0 {
                    pairs.push((from, to));
                }
            }
        }
        let path = |(from, to): (u32, u32)| match from % 2 {
            0 => vec![from, 2 * NODES, NODES + to],
            _ => vec![from, NODES + to],
        };
        let paths: Vec<Vec<u32>> = pairs.iter().map(|pair| path(*pair)).collect();
        for (at, pair) in pairs.iter().enumerate() {
            network.send(&mut queue, *pair, &paths[at], (ReadId(0), Run::new(0, 1_000_000)));
        }
        let (mut counts, mut from) = (vec![0_u32; pairs.len()], vec![0_u32; pairs.len()]);
        while queue.now() < Duration::from_secs(12) {
            let station = queue.pop().expect("flows are endless");
            if let Arrival::Piece(crossed) = network.served(&mut queue, Served(station)) {
                let at = pairs.iter().position(|pair| *pair == (crossed.from, crossed.to)).unwrap();
                counts[at] += 1;
                from[at] += u32::from(queue.now() < Duration::from_secs(2));
            }
        }
        let capacities: Vec<f64> = capacities.iter().map(|rate| *rate as f64 / PIECE_BYTES as f64).collect();
        for (at, expected) in progressive_filling(&capacities, &paths).into_iter().enumerate() {
            let got = f64::from(counts[at] - from[at]) / 10.0;
            assert!((got - expected).abs() <= 0.05 * expected + 0.3, "{:?}: {got} not {expected}", pairs[at]);
        }
    }
}

#[test]
fn a_cancelled_read_sends_only_what_has_begun() {
    let mut network = Network::new(4);
    let mut queue: Queue<u32> = Queue::new(Duration::ZERO);
    let path = [network.add_station(PIECE_BYTES), network.add_station(PIECE_BYTES)];
    network.send(&mut queue, (0, 1), &path, (ReadId(1), Run::new(0, 3)));
    network.send(&mut queue, (0, 1), &path, (ReadId(2), Run::new(5, 9)));
    let mut got = Vec::new();
    assert!(network.cancel(0, 1, ReadId(2)), "nothing of it has begun");
    while let Some(station) = queue.pop() {
        if let Arrival::Piece(crossed) = network.served(&mut queue, Served(station)) {
            got.push((crossed.piece.0, crossed.is_last));
            if got.len() == 1 {
                assert!(!network.cancel(0, 1, ReadId(1)), "its second piece has");
            }
        }
    }
    assert_eq!(got, [(0, false), (1, true)]);
}

#[test]
fn what_is_cut_never_arrives_and_leaves_the_card_to_others() {
    let mut network = Network::new(4);
    let mut queue: Queue<u32> = Queue::new(Duration::ZERO);
    let path = [network.add_station(PIECE_BYTES), network.add_station(PIECE_BYTES)];
    network.send(&mut queue, (0, 1), &path, (ReadId(1), Run::new(0, 3)));
    for _ in 0..3 {
        let station = queue.pop().unwrap();
        network.served(&mut queue, Served(station));
    }
    assert_eq!(network.cut(0, 1), [ReadId(1)]);
    network.send(&mut queue, (0, 1), &path, (ReadId(2), Run::new(7, 8)));
    let mut got = Vec::new();
    while let Some(station) = queue.pop() {
        if let Arrival::Piece(crossed) = network.served(&mut queue, Served(station)) {
            got.push(crossed.piece.0);
        }
    }
    assert_eq!(got, [7]);
}

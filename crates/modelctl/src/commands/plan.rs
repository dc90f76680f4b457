//! `modelctl plan`: how an artifact would reach many peers.
//!
//! Owns: the report in its forms. Does not own: the planning (`planner`), or how trees are drawn (`plan::picture`,
//! `plan::svg`).

mod imagined;
mod live;
mod peers;
mod picture;
mod svg;
mod trees;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    fs,
    time::Duration,
};

use anyhow::Context as _;
use planner::{
    ArtifactId, Place,
    bound::{Binding, Bound},
};
use serde::Serialize;

use self::{
    imagined::Imagined,
    live::Current,
    trees::{Peer, Shape, Tree},
};
use crate::{
    access,
    artifact::Artifact,
    cli::PlanArgs,
    printer::Printer,
    report::Refusal,
    text::{self, Align, Table},
};

/// Lines of the table of shapes.
const SHAPES_MAX: usize = 4;

/// Columns of a name within a sentence.
const NAME_WIDTH: usize = 24;

/// What is planned. Serialised, it is the result of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    digest: String,
    bytes: u64,
    pieces: u32,
    /// Consecutive pieces that stay in one stripe.
    stripe_pieces: u32,
    /// HOST:PORT of the scheduler whose plan this is, and the plan's number; `None` if it is imagined.
    scheduler: Option<String>,
    epoch: Option<u64>,
    /// The largest of the four; `None` where a rate is not known.
    bound_seconds: Option<f64>,
    /// `origin`, `receiver`, `senders` or `peers`; `None` where the scheduler does not say.
    bounded_by: Option<&'static str>,
    bounds: Option<Bounds>,
    finish_seconds: Option<f64>,
    /// About what crosses from rack to rack, all stripes together.
    crossing_bytes: u64,
    /// All; the list holds the first few thousand.
    peer_count: u32,
    /// The seeds first.
    peers: Vec<PeerFacts>,
    stripes: Vec<StripeFacts>,
    #[serde(skip)]
    drawing: Drawing,
}

/// What no distribution can beat, and why: each in seconds.
#[derive(Debug, Serialize)]
struct Bounds {
    /// The origin sends everything once; `None` where its rate is not known.
    origin: Option<f64>,
    /// The slowest peer receives everything.
    receiver: f64,
    /// The origin and all peers send all copies together.
    senders: Option<f64>,
    /// The peers send all copies but the one that the origin sends.
    peers: f64,
}

#[derive(Debug, Serialize)]
struct PeerFacts {
    name: String,
    nic_bytes_per_second: Option<u64>,
    zone: Option<String>,
    rack: Option<String>,
    seed: bool,
    /// About what it reads from the origin.
    origin_bytes: u64,
    /// What it has, from 0 to 1; `None` where nothing moves.
    progress: Option<f64>,
}

#[derive(Debug, Serialize)]
struct StripeFacts {
    pieces: u32,
    /// The number in `peers` of the one that reads it from the origin.
    entrant: Option<usize>,
    /// For each of `peers` the number of its parent.
    parents: Vec<Option<usize>>,
    depth: u32,
    interior: usize,
    children_max: usize,
}

/// What only the text shows.
#[derive(Debug)]
struct Drawing {
    peers: Vec<Peer>,
    trees: Vec<Tree>,
    /// The stripe that is drawn.
    stripe: usize,
    /// What sets the bound, if that is known.
    limit: Option<String>,
    svg: Option<String>,
}

/// Plans and shows.
pub(crate) fn run(args: &PlanArgs, printer: &Printer) -> anyhow::Result<()> {
    let mut report = match &args.peers {
        Some(peers) => Report::imagined(args, peers::read(peers)?)?,
        None => Report::of_current(args.reference.to_string(), access::runtime()?.block_on(live::ask(args))?),
    };
    let drawing = &mut report.drawing;
    drawing.stripe = chosen(args.stripe, drawing.trees.len())?;
    if let Some(path) = &args.svg {
        let title = format!("{} to {}", args.reference, text::plural(drawing.wanting().count(), "peer"));
        let picture = svg::draw(&title, &drawing.trees, &drawing.peers, args.stripe);
        fs::write(path, picture).with_context(|| format!("cannot write `{}`", path.display()))?;
        drawing.svg = Some(path.display().to_string());
    }
    printer.result(&report)
}

/// The stripe that is to be drawn: the first, or the one that was named.
fn chosen(named: Option<usize>, stripes: usize) -> anyhow::Result<usize> {
    match named {
        Some(named) if named >= stripes => {
            let message = format!("there is no stripe {named}");
            let hint = format!("the stripes are 0 to {}", stripes.saturating_sub(1));
            Err(Refusal::usage(message).hint(hint).into())
        }
        named => Ok(named.unwrap_or(0)),
    }
}

/// What sets the bound, in words.
fn limit(binding: Binding, peers: &[Peer], origin_rate: Option<u64>) -> String {
    let rate = |rate: u64| format!("{}/s", text::bytes(rate));
    let sum = |is_seed: bool| {
        let rates = peers.iter().filter(|peer| peer.is_seed == is_seed).filter_map(|peer| peer.nic_rate);
        rates.fold(0, u64::saturating_add)
    };
    let origin = || {
        let seeds = sum(true);
        if seeds > 0 { ("the seeds", seeds) } else { ("the registry", origin_rate.unwrap_or(0)) }
    };
    match binding {
        Binding::Origin => {
            let (who, all) = origin();
            format!("all that {who} can send is {}", rate(all))
        }
        Binding::Receiver => {
            let wanting = || peers.iter().filter(|peer| !peer.is_seed);
            let slowest = wanting().filter_map(|peer| peer.nic_rate).min();
            let slow = wanting().filter(|peer| peer.nic_rate == slowest).count();
            let name = wanting().find(|peer| peer.nic_rate == slowest).map_or("", |peer| &peer.name);
            let (name, takes) = (text::clipped(name, NAME_WIDTH), rate(slowest.unwrap_or(0)));
            match slow {
                1 => format!("`{name}` receives {takes}"),
                slow if slow == wanting().count() => format!("each peer receives {takes}"),
                _ => format!("`{name}` and {} more receive {takes} each", slow - 1),
            }
        }
        Binding::Senders => {
            format!("the origin and all peers send {} together", rate(origin().1.saturating_add(sum(false))))
        }
        Binding::OriginBudget => {
            format!("the peers send {} together, the origin one copy", rate(sum(false)))
        }
    }
}

impl Report {
    /// What a scheduler would plan for these peers.
    fn imagined(args: &PlanArgs, peers: Vec<Peer>) -> anyhow::Result<Self> {
        if args.origin_rate.is_some() && peers.iter().any(|peer| peer.is_seed) {
            let message = "with seeds nobody reads the registry, whatever its rate";
            return Err(Refusal::usage(message)
                .hint("drop `--origin-rate`, or the seeds in the list")
                .into());
        }
        let artifact = access::runtime()?.block_on(Artifact::open(&args.reference, &args.registry))?;
        let (layout, digest) = (artifact.manifest.layout(), artifact.manifest.digest());
        let rate = args.origin_rate.map(|rate| rate.0);
        let Imagined { trees, stripe_pieces, bound, finish } =
            imagined::plan((ArtifactId(*digest.bytes()), layout), &peers, rate);
        let (time, binding) = bound.binding();
        let limit = Some(limit(binding, &peers, rate));
        Ok(Self {
            reference: args.reference.to_string(),
            digest: digest.to_string(),
            bytes: layout.total_bytes(),
            pieces: layout.piece_count(),
            stripe_pieces,
            scheduler: None,
            epoch: None,
            bound_seconds: Some(time.as_secs_f64()),
            bounded_by: Some(imagined::word(binding)),
            bounds: Some(Bounds::from(&bound)),
            finish_seconds: Some(finish.as_secs_f64()),
            crossing_bytes: 0,
            peer_count: u32::try_from(peers.len()).unwrap_or(u32::MAX),
            peers: Vec::new(),
            stripes: Vec::new(),
            drawing: Drawing { peers, trees, stripe: 0, limit, svg: None },
        }
        .with_lists())
    }

    /// What a scheduler has planned.
    fn of_current(reference: String, current: Current) -> Self {
        let (peers, trees) = current.trees();
        let Current { digest, scheduler, plan } = current;
        Self {
            reference,
            digest: digest.to_string(),
            bytes: plan.bytes,
            pieces: plan.piece_count,
            stripe_pieces: plan.stripe_pieces,
            scheduler: Some(scheduler),
            epoch: Some(plan.epoch),
            bound_seconds: plan.bound.map(|time| time.as_secs_f64()),
            bounded_by: None,
            bounds: None,
            finish_seconds: plan.finish.map(|time| time.as_secs_f64()),
            crossing_bytes: 0,
            peer_count: plan.member_count,
            peers: Vec::new(),
            stripes: Vec::new(),
            drawing: Drawing { peers, trees, stripe: 0, limit: None, svg: None },
        }
        .with_lists()
    }

    /// Peers and stripes as data, from what is drawn.
    fn with_lists(mut self) -> Self {
        let Drawing { peers, trees, .. } = &self.drawing;
        let sizes = stripe_sizes(self.pieces, trees.len(), self.stripe_pieces);
        let bytes =
            |pieces: u64| u128::from(self.bytes) * u128::from(pieces) / u128::from(self.pieces.max(1));
        let origin_bytes = |at: usize| {
            let own = trees.iter().zip(&sizes).filter(|(tree, _)| tree.entrant == Some(at));
            u64::try_from(bytes(own.map(|(_, pieces)| u64::from(*pieces)).sum())).unwrap_or(u64::MAX)
        };
        let crossings = trees.iter().zip(&sizes);
        let crossings =
            crossings.map(|(tree, pieces)| tree.crossings(peers).count() as u64 * u64::from(*pieces));
        let crossing_bytes = u64::try_from(bytes(crossings.sum())).unwrap_or(u64::MAX);
        let peer = |(at, peer): (usize, &Peer)| PeerFacts {
            name: peer.name.clone(),
            nic_bytes_per_second: peer.nic_rate,
            zone: Some(peer.place.zone.clone()).filter(|zone| !zone.is_empty()),
            rack: Some(peer.place.rack.clone()).filter(|rack| !rack.is_empty()),
            seed: peer.is_seed,
            origin_bytes: origin_bytes(at),
            progress: peer.done,
        };
        let stripe = |(tree, pieces): (&Tree, &u32)| {
            let Shape { depth, interior, children_max, .. } = tree.shape();
            let (entrant, parents) = (tree.entrant, tree.parents.clone());
            StripeFacts { pieces: *pieces, entrant, parents, depth, interior, children_max }
        };
        let lists =
            (peers.iter().enumerate().map(peer).collect(), trees.iter().zip(&sizes).map(stripe).collect());
        (self.peers, self.stripes) = lists;
        self.crossing_bytes = crossing_bytes;
        self
    }
}

/// The pieces of each stripe.
fn stripe_sizes(pieces: u32, stripes: usize, stripe_pieces: u32) -> Vec<u32> {
    let mut sizes = vec![0; stripes];
    (0..pieces).for_each(|piece| sizes[(piece / stripe_pieces) as usize % stripes] += 1);
    sizes
}

impl From<&Bound> for Bounds {
    fn from(bound: &Bound) -> Self {
        // An origin of unknown rate needs no time.
        let known = |time: Duration| (!bound.origin.is_zero()).then_some(time.as_secs_f64());
        Self {
            origin: known(bound.origin),
            receiver: bound.receiver.as_secs_f64(),
            senders: known(bound.senders),
            peers: bound.origin_budget.as_secs_f64(),
        }
    }
}

impl Drawing {
    fn wanting(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.is_seed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drawing { peers, trees, stripe, .. } = &self.drawing;
        let shapes = self.shapes();
        write!(f, "{}\n\n{shapes}", self.facts())?;
        let Some(tree) = trees.get(*stripe) else { return Ok(()) };
        let others = match trees.len() {
            1 => String::new(),
            count => format!("; `--stripe N` draws another, 0 to {}", count - 1),
        };
        write!(f, "\n\nstripe {stripe}{others}\n{}", picture::draw(tree, peers))
    }
}

impl Report {
    fn facts(&self) -> Table<2> {
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut say = |name: &str, value: String| table.row([name.to_owned(), value]);
        let seconds = |seconds: f64| text::seconds(Duration::from_secs_f64(seconds));
        say("reference", self.reference.clone());
        say("digest", self.digest.clone());
        if let (Some(scheduler), Some(epoch)) = (&self.scheduler, self.epoch) {
            say("scheduler", format!("{}, plan {epoch}", text::one_line(scheduler)));
        }
        say(
            "size",
            format!("{} in {}", text::bytes(self.bytes), text::plural(self.pieces as usize, "piece")),
        );
        say("peers", self.who());
        if let Some(progress) = self.progress() {
            say("progress", text::share(progress));
        }
        if let Some(bound) = self.bound_seconds {
            let limit = self.drawing.limit.as_ref().map(|limit| format!(": {limit}"));
            say("bound", format!("{}{}", seconds(bound), limit.unwrap_or_default()));
        }
        if let (Some(finish), Some(bound)) = (self.finish_seconds, self.bound_seconds) {
            let ratio =
                if bound > 0.0 { format!(", {:.3} × the bound", finish / bound) } else { String::new() };
            say("predicted", format!("{}{ratio}", seconds(finish)));
        }
        say("origin", self.origin());
        say("interior", self.interior());
        if let Some(racks) = self.racks() {
            say("racks", racks);
        }
        if let Some(path) = &self.drawing.svg {
            say("picture", path.clone());
        }
        table
    }

    fn who(&self) -> String {
        let wanting = self.drawing.wanting().count();
        let complete = self.drawing.wanting().filter(|peer| peer.done == Some(1.0)).count();
        let mut who = wanting.to_string();
        if complete > 0 {
            let _ = write!(who, ", of which {complete} have everything");
        }
        match self.peers.len() - wanting {
            0 => {}
            seeds => {
                let _ = write!(who, ", and {}", text::plural(seeds, "seed"));
            }
        }
        match (self.peer_count as usize).saturating_sub(self.peers.len()) {
            0 => who,
            more => format!("{who}, and {more} more that are not listed"),
        }
    }

    /// What all have together, where anything moves.
    fn progress(&self) -> Option<f64> {
        let (count, sum) = self
            .drawing
            .wanting()
            .filter_map(|peer| peer.done)
            .fold((0_u32, 0.0), |(count, sum), done| (count + 1, sum + done));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Who reads how much of the origin.
    fn origin(&self) -> String {
        let mut shares: Vec<u64> =
            self.peers.iter().map(|peer| peer.origin_bytes).filter(|bytes| *bytes > 0).collect();
        shares.sort_unstable();
        match (shares.first(), shares.last()) {
            (Some(least), Some(most)) => {
                let [least, most] = [least, most].map(|bytes| text::bytes(*bytes));
                let each = if least == most { most } else { format!("{least} to {most}") };
                match shares.len() {
                    1 => "read once, by one peer".to_owned(),
                    count => format!("read once, by {count} peers, {each} each"),
                }
            }
            _ if self.peers.iter().any(|peer| peer.seed) => "the seeds; nobody reads the registry".to_owned(),
            _ => "nobody reads it".to_owned(),
        }
    }

    /// Where there are several: how many, and how often the artifact crosses between them.
    fn racks(&self) -> Option<String> {
        let racks: BTreeSet<&Place> = self.drawing.wanting().map(|peer| &peer.place).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of copies with two digits")]
        let copies = self.crossing_bytes as f64 / self.bytes.max(1) as f64;
        let zones: BTreeSet<&String> = racks.iter().map(|place| &place.zone).collect();
        let zones = if zones.len() > 1 { format!(" in {} zones", zones.len()) } else { String::new() };
        (racks.len() > 1).then(|| format!("{}{zones}, between which {copies:.2} copies cross", racks.len()))
    }

    /// In how many stripes peers serve others: who dies costs the others no more than those.
    fn interior(&self) -> String {
        let serves = |peer: &usize| self.drawing.trees.iter().filter(|tree| tree.is_interior(*peer)).count();
        let wanting = (0..self.peers.len()).filter(|peer| !self.peers[*peer].seed);
        let counts: Vec<usize> = wanting.map(|peer| serves(&peer)).collect();
        let those = |is: fn(usize) -> bool| counts.iter().filter(|count| is(**count)).count();
        let kinds = [
            (those(|count| count == 1), "in one stripe"),
            (those(|count| count > 1), "in several"),
            (those(|count| count == 0), "in none"),
        ];
        let kinds = kinds.iter().filter(|(count, _)| *count > 0);
        kinds.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }

    /// Trees of the same shape share a line.
    fn shapes(&self) -> Table<5> {
        let mut shapes: BTreeMap<Shape, usize> = BTreeMap::new();
        for tree in &self.drawing.trees {
            *shapes.entry(tree.shape()).or_default() += 1;
        }
        let mut shapes: Vec<(Shape, usize)> = shapes.into_iter().collect();
        shapes.sort_by_key(|(shape, count)| (std::cmp::Reverse(*count), *shape));
        let mut table = Table::new([Align::Right; 5]);
        table.row(["STRIPES", "DEPTH", "INTERIOR", "LEAVES", "CHILDREN"].map(str::to_owned));
        let row = |(shape, count): &(Shape, usize)| {
            let most = format!("≤ {}", shape.children_max);
            [
                count.to_string(),
                shape.depth.to_string(),
                shape.interior.to_string(),
                shape.leaves.to_string(),
                most,
            ]
        };
        shapes.iter().take(SHAPES_MAX).for_each(|shape| table.row(row(shape)));
        if let Some(others) = shapes.get(SHAPES_MAX..).filter(|others| !others.is_empty()) {
            let count: usize = others.iter().map(|(_, count)| count).sum();
            table.row([&count.to_string(), "…", "…", "…", "…"].map(str::to_owned));
        }
        table
    }
}

//! `modelctl ls`, `rm`, `tag` and `prune`: a store by hand.
//!
//! Owns: what a person means by a reference, and what is said. Does not own: the store.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime},
};

use modelpack::{digest::Sha256Digest, quantity::Size, reference::Reference};
use serde::Serialize;
use store::{Inventory, Store, StoreError, StoredArtifact};

use crate::{
    cli::{LsArgs, PruneArgs, RmArgs, StoreArgs, TagArgs},
    printer::Printer,
    report::Refusal,
    text::{self, Align, Table},
};

/// Fewer characters of a digest could mean another one tomorrow.
const DIGEST_CHARS_MIN: usize = 8;

/// Characters of a digest that a person needs to tell artifacts apart.
const SHORT_DIGEST: usize = 12;

/// The result of `ls`.
#[derive(Serialize)]
struct Listing {
    store: String,
    bytes: u64,
    leftover_bytes: u64,
    artifacts: Vec<Listed>,
    partials: Vec<Partial>,
}

#[derive(Serialize)]
struct Listed {
    digest: String,
    names: Vec<String>,
    /// How many; `None` for what is no model.
    files: Option<usize>,
    bytes: u64,
    own_bytes: u64,
    used_unix_seconds: u64,
    pinned: bool,
    #[serde(skip)]
    used: SystemTime,
}

#[derive(Serialize)]
struct Partial {
    digest: Option<String>,
    bytes: u64,
    used_unix_seconds: u64,
    #[serde(skip)]
    used: SystemTime,
}

/// The result of `rm` and `tag`.
#[derive(Serialize)]
struct Changed {
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned: Option<bool>,
    #[serde(skip)]
    said: String,
}

/// The result of `prune`.
#[derive(Serialize)]
struct Pruned {
    dry_run: bool,
    artifacts: Vec<Gone>,
    partials: Vec<Gone>,
    leftover_bytes: u64,
    freed_bytes: u64,
    left_bytes: u64,
    /// `false` if what is pinned alone is more than was asked for.
    fits: bool,
}

#[derive(Serialize)]
struct Gone {
    digest: String,
    name: Option<String>,
    bytes: u64,
}

/// Lists what a store holds.
pub(crate) fn ls(args: &LsArgs, printer: &Printer) -> anyhow::Result<()> {
    let inventory = look(&args.store)?;
    let listed = inventory.artifacts.iter().map(|one| Listed {
        digest: one.digest.to_string(),
        names: one.names.clone(),
        files: one.manifest.as_ref().map(|manifest| manifest.files().len()),
        bytes: one.bytes,
        own_bytes: one.own_bytes,
        used_unix_seconds: unix_seconds(one.used),
        pinned: one.is_pinned,
        used: one.used,
    });
    let partials = inventory.partials.iter().map(|partial| Partial {
        digest: partial.digest.map(|digest| digest.to_string()),
        bytes: partial.bytes,
        used_unix_seconds: unix_seconds(partial.used),
        used: partial.used,
    });
    printer.result(&Listing {
        store: args.store.store.display().to_string(),
        bytes: inventory.bytes,
        leftover_bytes: inventory.leftover_bytes,
        artifacts: listed.collect(),
        partials: partials.collect(),
    })
}

/// Removes an artifact, or one of its names.
pub(crate) fn rm(args: &RmArgs, printer: &Printer) -> anyhow::Result<()> {
    let store = open(&args.store)?;
    let inventory = store.inventory()?;
    let one = find(&inventory, &args.reference, &args.store.store)?;
    let name = one.names.iter().find(|name| **name == args.reference);
    let digest = one.digest.to_string();
    if let Some(name) = name.filter(|_| one.names.len() > 1) {
        store.unname(name)?;
        let said = format!("{name} is no longer a name of {digest}, which has others");
        let freed_bytes = Some(0);
        return printer.result(&Changed {
            digest,
            name: Some(name.clone()),
            freed_bytes,
            pinned: None,
            said,
        });
    }
    let freed = store.remove(&one.digest)?;
    let said = format!("removed {digest}, which frees {}", text::bytes(freed));
    printer.result(&Changed { digest, name: name.cloned(), freed_bytes: Some(freed), pinned: None, said })
}

/// Gives an artifact a name, or pins it.
pub(crate) fn tag(args: &TagArgs, printer: &Printer) -> anyhow::Result<()> {
    let dir = &args.store.store;
    let digest = find(&look(&args.store)?, &args.source, dir)?.digest;
    let mut said = Vec::new();
    let mut pinned = None;
    if args.pin {
        Store::keep(dir, &digest)?;
        (pinned, said) = (Some(true), vec![format!("{digest} is pinned")]);
    } else if args.unpin {
        Store::let_go(dir, &digest)?;
        (pinned, said) = (Some(false), vec![format!("{digest} is not pinned")]);
    }
    let name = args.name.as_ref().map(name_of).transpose()?;
    if let Some(name) = &name {
        open(&args.store)?.name(&digest, name)?;
        said.push(format!("{name} is {digest}"));
    }
    let said = said.join("\n");
    printer.result(&Changed { digest: digest.to_string(), name, freed_bytes: None, pinned, said })
}

/// Removes what is not needed.
pub(crate) fn prune(args: &PruneArgs, printer: &Printer) -> anyhow::Result<()> {
    let store = open(&args.store)?;
    let inventory = store.inventory()?;
    let max = args.max.map(|Size(bytes)| bytes);
    let plan = store.plan_prune(max)?;
    if !args.dry_run {
        store.carry_out(&plan)?;
    }
    let fits = max.is_none_or(|max| plan.left_bytes <= max);
    let name_of = |digest: &Sha256Digest| {
        inventory.artifacts.iter().find(|one| one.digest == *digest)?.names.first().cloned()
    };
    let artifacts = plan.artifacts.iter().map(|(digest, bytes)| Gone {
        digest: digest.to_string(),
        name: name_of(digest),
        bytes: *bytes,
    });
    let partials = plan.partials.iter().map(|(name, bytes)| Gone {
        digest: format!("sha256:{name}"),
        name: None,
        bytes: *bytes,
    });
    printer.result(&Pruned {
        dry_run: args.dry_run,
        artifacts: artifacts.collect(),
        partials: partials.collect(),
        leftover_bytes: plan.leftover_bytes,
        freed_bytes: plan.freed_bytes(),
        left_bytes: plan.left_bytes,
        fits,
    })?;
    if fits {
        return Ok(());
    }
    let message = format!("{} stay, because they are pinned or no models", text::bytes(plan.left_bytes));
    Err(Refusal::failed(message).hint("let go of some with `modelctl tag REF --unpin`").into())
}

fn look(args: &StoreArgs) -> anyhow::Result<Inventory> {
    Store::look(&args.store).map_err(|error| no_store(error, &args.store))
}

/// Opens a store that is there, for changes.
fn open(args: &StoreArgs) -> anyhow::Result<Store> {
    // A command that removes things makes no new store of a mistyped name.
    look(args)?;
    Store::open(&args.store).map_err(|error| match error {
        StoreError::Busy { .. } => {
            let message = format!("a peer runs on the store in `{}`", args.store.display());
            let hint = "end the peer first; with `--store-max SIZE` it removes by itself what was not used for longest";
            Refusal::failed(message).hint(hint).into()
        }
        error => error.into(),
    })
}

fn no_store(error: StoreError, dir: &Path) -> anyhow::Error {
    let hint = "name the directory of a peer's store with `--store DIR`, or set MODELCTL_STORE";
    let cause = format!("{:#}", anyhow::Error::new(error));
    let message = format!("cannot look into the store in `{}`: {cause}", dir.display());
    Refusal::failed(message).hint(hint).into()
}

/// The artifact that a person means.
fn find<'a>(inventory: &'a Inventory, text: &str, dir: &Path) -> anyhow::Result<&'a StoredArtifact> {
    let hex = text.trim_start_matches("fleet:").trim_start_matches("sha256:").to_ascii_lowercase();
    let is_hex = hex.len() >= DIGEST_CHARS_MIN && hex.chars().all(|c| c.is_ascii_hexdigit());
    let by_digest = |one: &&StoredArtifact| is_hex && one.digest.hex().starts_with(&hex);
    let by_name = inventory.artifacts.iter().find(|one| one.names.iter().any(|name| name == text));
    let mut found = by_name.into_iter().chain(inventory.artifacts.iter().filter(by_digest));
    let hint = format!("`modelctl ls --store {}` shows what it holds", dir.display());
    let Some(first) = found.next() else {
        return Err(Refusal::failed(format!("the store holds no `{text}`")).hint(hint).into());
    };
    if by_name.is_none() && found.next().is_some() {
        return Err(Refusal::usage(format!("several digests begin with `{text}`")).hint(hint).into());
    }
    Ok(first)
}

/// A name by which peers look for it.
fn name_of(reference: &Reference) -> anyhow::Result<String> {
    match reference {
        Reference::Registry(at) if at.digest.is_none() && at.tag.is_some() => Ok(reference.to_string()),
        _ => Err(Refusal::usage(format!("`{reference}` is no name for an artifact in a store"))
            .hint("names are `HOST/REPO:TAG`")
            .into()),
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn ago(time: SystemTime) -> String {
    // Whoever set the clock back sees what was used just now.
    let since = SystemTime::now().duration_since(time).unwrap_or(Duration::ZERO).as_secs();
    match since {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", since / 60),
        3600..86400 => format!("{} h ago", since / 3600),
        _ => format!("{} d ago", since / 86400),
    }
}

fn short(digest: &str) -> String {
    let hex = digest.trim_start_matches("sha256:");
    hex.get(..SHORT_DIGEST).unwrap_or(hex).to_owned()
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Align::{Left, Right};
        let mut table = Table::new([Left, Left, Right, Right, Right, Left, Left]);
        table.row(["NAME", "DIGEST", "SIZE", "OWN", "FILES", "USED", ""].map(str::to_owned));
        for one in &self.artifacts {
            let files = one.files.map_or_else(|| "-".to_owned(), |files| files.to_string());
            let (digest, used) = (short(&one.digest), ago(one.used));
            let pinned = if one.pinned { "pinned" } else { "" }.to_owned();
            let mut names = one.names.iter().map(|name| text::one_line(name));
            let name = names.next().unwrap_or_else(|| "-".to_owned());
            table.row([
                name,
                digest.clone(),
                text::bytes(one.bytes),
                text::bytes(one.own_bytes),
                files,
                used,
                pinned,
            ]);
            for name in names {
                let nothing = String::new;
                table.row([name, digest.clone(), nothing(), nothing(), nothing(), nothing(), nothing()]);
            }
        }
        for partial in &self.partials {
            let digest = partial.digest.as_deref().map_or_else(|| "-".to_owned(), short);
            let (name, own) = ("(not complete)".to_owned(), text::bytes(partial.bytes));
            table.row([name, digest, own.clone(), own, "-".to_owned(), ago(partial.used), String::new()]);
        }
        if !self.artifacts.is_empty() || !self.partials.is_empty() {
            for line in table.to_string().lines() {
                writeln!(f, "{}", line.trim_end())?;
            }
            writeln!(f)?;
        }
        let count = text::plural(self.artifacts.len(), "artifact");
        write!(f, "{count}, {} in `{}`", text::bytes(self.bytes), self.store)?;
        if self.leftover_bytes > 0 {
            write!(f, "; {} of them left by a crash: `modelctl prune`", text::bytes(self.leftover_bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([Align::Left, Align::Left, Align::Right]);
        for one in &self.artifacts {
            let name = one.name.as_deref().map_or_else(|| "-".to_owned(), text::one_line);
            table.row([name, short(&one.digest), text::bytes(one.bytes)]);
        }
        for one in &self.partials {
            table.row(["(not complete)".to_owned(), short(&one.digest), text::bytes(one.bytes)]);
        }
        if self.leftover_bytes > 0 {
            table.row(["(left by a crash)".to_owned(), "-".to_owned(), text::bytes(self.leftover_bytes)]);
        }
        if !table.is_empty() {
            writeln!(f, "{table}\n")?;
        }
        let verb = if self.dry_run { "would free" } else { "freed" };
        let (freed, left) = (text::bytes(self.freed_bytes), text::bytes(self.left_bytes));
        write!(f, "{verb} {freed}; {left} stay")
    }
}

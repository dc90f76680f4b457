//! `modelctl run`: pulls, then becomes the command.
//!
//! Owns: the command line that is executed, and the order. Does not own: the pull, or where the directory lies if nobody says
//! it (`cache`).

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::PermissionsExt as _,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Context as _;
use modelpack::reference::Reference;
use peer::{PullReport, PullRequest, PullWatch};
use rustix::process::{Resource, getrlimit, setrlimit};
use store::CompleteRecord;

use super::{
    pull::{self, way::Asked},
    transports,
};
use crate::{access, cli::RunArgs, printer::Printer, report::Refusal, text};

mod cache;

use cache::Place;

/// What stands for the directory in the command's arguments.
const PLACE: &[u8] = b"{}";

/// Pulls and becomes the command; comes back only where that fails.
pub(crate) fn run(args: &RunArgs, printer: &Printer) -> anyhow::Result<()> {
    if !args.command.iter().any(|word| find(word.as_bytes()).is_some()) {
        let message = "no argument of the command has `{}`, so that it would not know the directory";
        let hint = "write `{}` where the directory belongs, as in `modelctl run REF -- vllm serve {}`";
        return Err(Refusal::usage(message).hint(hint).into());
    }
    // Before anything moves: it would be a pity to learn of a mistyped name an hour later.
    check_program(&args.command[0])?;
    transports::check(&args.transport)?;
    let files = getrlimit(Resource::Nofile);
    let (dir, place) = access::runtime()?.block_on(bring(args, printer))?;
    // The pull may have raised it, and some programs rely on a low one (select(2)).
    setrlimit(Resource::Nofile, files).context("cannot restore the limit of open files")?;
    if let Some(place) = place {
        place.clear(args.keep, printer);
        place.hand_on().context("cannot keep the directory for the command")?;
    }
    let words: Vec<_> = args.command.iter().map(|word| with_dir(word, &dir)).collect();
    let error = Command::new(&words[0]).args(&words[1..]).exec();
    Err(anyhow::Error::new(error).context(format!("cannot execute `{}`", words[0].display())))
}

/// Brings the artifact; gives its directory's absolute path, and what keeps that if nobody has named it.
async fn bring(args: &RunArgs, printer: &Printer) -> anyhow::Result<(PathBuf, Option<Place>)> {
    let access = access::for_reference(&args.registry, &args.reference)?;
    let (mut reference, mut output) = (args.reference.clone(), args.output.clone().unwrap_or_default());
    let mut place = None;
    if args.output.is_none() {
        let (digest, pinned) = peer::resolve(&args.reference, access.clone()).await?;
        let taken = Place::of(&digest)?;
        output.clone_from(&taken.dir);
        place = Some(taken);
        if is_complete(&output) {
            printer.note(format_args!("{} is in {}, all proved before", args.reference, output.display()));
            return Ok((output, place));
        }
        reference = pinned;
    }
    let selection = Arc::new(args.selection.selection()?);
    let landing = args.landing.into();
    let (bases, priority) = (Vec::new(), args.priority.into());
    let request =
        PullRequest { reference, access, output: output.clone(), landing, selection, bases, priority };
    let asked = Asked {
        reference: &args.reference,
        peer: args.peer.as_ref(),
        direct: args.direct,
        landing: args.landing,
        embedded: &args.embedded,
        trust: &args.trust,
        transport: &args.transport,
    };
    let watch = PullWatch::new();
    let (report, lingering) = tokio::select! {
        result = pull::bring(&asked, request, args.link.into(), (&watch, printer)) => result?,
        never = pull::show_bar(&watch, printer) => match never {},
    };
    pull::warn_of(&report, printer);
    printer.note(told(&args.reference, &report, &output));
    if let Some(lingering) = lingering {
        // Told to end meanwhile, this process just ends: there is no command yet whose business that would be.
        lingering.linger(args.embedded.linger.0, std::future::pending()).await;
    }
    let absolute = std::path::absolute(&output);
    let absolute = absolute.with_context(|| format!("cannot tell where `{}` is", output.display()))?;
    Ok((absolute, place))
}

fn told(reference: &Reference, report: &PullReport, dir: &Path) -> String {
    let moved = report.origin_bytes + report.peer_bytes;
    let moved = if moved == 0 { "it was here".to_owned() } else { format!("{} moved", text::bytes(moved)) };
    let (bytes, time) = (text::bytes(report.bytes), text::seconds(report.elapsed));
    format!("{reference} is in {}: {bytes}, all proved; {moved}, {time}", dir.display())
}

/// Whether a directory that is named by a digest has all that its record says, unchanged: then nobody has to be asked.
fn is_complete(dir: &Path) -> bool {
    let record = CompleteRecord::load(dir).ok().flatten();
    record.is_some_and(|record| record.selection.is_none() && store::verify_record(dir, &record).is_ok())
}

/// That the program is there, unless it is to come with the model.
fn check_program(name: &OsStr) -> anyhow::Result<()> {
    if find(name.as_bytes()).is_some() {
        return Ok(());
    }
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let is_found = if name.as_bytes().contains(&b'/') {
        is_program(Path::new(name))
    } else {
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|dir| is_program(&dir.join(name)))
    };
    if is_found {
        return Ok(());
    }
    let message = format!("there is no program `{}`", name.display());
    Err(Refusal::usage(message).hint("what follows `--` is the command; nothing was pulled").into())
}

/// Where `{}` stands in a word first.
fn find(word: &[u8]) -> Option<usize> {
    word.windows(PLACE.len()).position(|part| part == PLACE)
}

fn with_dir(word: &OsStr, dir: &Path) -> OsString {
    let (mut rest, mut whole) = (word.as_bytes(), Vec::new());
    while let Some(at) = find(rest) {
        whole.extend_from_slice(&rest[..at]);
        whole.extend_from_slice(dir.as_os_str().as_bytes());
        rest = &rest[at + PLACE.len()..];
    }
    whole.extend_from_slice(rest);
    OsString::from_vec(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_becomes_the_directory() {
        for (word, expected) in
            [("{}", "/m"), ("--model={}/a:{}", "--model=/m/a:/m"), ("{ }", "{ }"), ("{{}}", "{/m}"), ("", "")]
        {
            assert_eq!(with_dir(OsStr::new(word), Path::new("/m")), expected, "{word}");
        }
    }
}

//! `modelctl login` and `logout`.
//!
//! Owns: asking a person, or stdin, for a password. Does not own: trying it and keeping it (`registry`).

use std::{
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Read as _},
};

use anyhow::Context as _;
use registry::{Access, Credentials};
use rustix::termios::{self, LocalModes, OptionalActions};
use serde::Serialize;

use crate::{
    access,
    cli::{LoginArgs, LogoutArgs},
    printer::Printer,
    report::Refusal,
};

/// Tokens that are used as passwords have kilobytes; more is not one.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// The result of either.
#[derive(Debug, Serialize)]
struct Kept {
    registry: String,
    /// The file that was changed; `None` if there was nothing to forget.
    file: Option<String>,
    logged_in: bool,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, file, logged_in } = self;
        match (file, logged_in) {
            (Some(file), true) => write!(f, "logged in to {registry}, kept in {file}"),
            (Some(file), false) => write!(f, "logged out of {registry}, forgotten in {file}"),
            (None, _) => write!(f, "there was no login to {registry}"),
        }
    }
}

/// Tries credentials, and keeps them if the registry takes them.
pub(crate) fn login(args: &LoginArgs, printer: &Printer) -> anyhow::Result<()> {
    let files = access::credential_files(&args.registry);
    let path = files.for_login().ok_or_else(|| {
        Refusal::usage("nobody says where your home is").hint("set HOME, or name a file with `--authfile`")
    })?;
    let username = match &args.username {
        Some(username) => username.clone(),
        None => asked("Username: ", printer)?,
    };
    let password = if args.password_stdin { from_stdin()? } else { hidden("Password: ", printer)? };
    if username.is_empty() || password.is_empty() {
        return Err(Refusal::usage("the user name or the password is empty").into());
    }
    let credentials = Credentials::from_pair(username, password);
    let access =
        Access { credentials: credentials.clone(), ..access::anonymous(&args.registry, &args.host)? };
    let is_proved = access::runtime()?
        .block_on(registry::check_login(&args.host, access))
        .with_context(|| format!("cannot log in to `{}`", args.host))?;
    if !is_proved {
        printer.warn(format_args!("`{}` lets everybody in and has not looked at the password", args.host));
    }
    registry::store_credentials(&path, &args.host, &credentials)?;
    let file = Some(path.display().to_string());
    printer.result(&Kept { registry: args.host.clone(), file, logged_in: true })
}

/// Forgets credentials wherever a login may have kept them.
pub(crate) fn logout(args: &LogoutArgs, printer: &Printer) -> anyhow::Result<()> {
    let mut file = None;
    for path in access::credential_files(&args.registry).places() {
        if registry::forget_credentials(&path, &args.host)? {
            file = Some(path.display().to_string());
        }
    }
    printer.result(&Kept { registry: args.host.clone(), file, logged_in: false })
}

fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut text).context("cannot read the password")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn asked(question: &str, printer: &Printer) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        let hint = "give the user name with `-u USER`, and the password with `--password-stdin`";
        return Err(Refusal::usage("nobody is there to be asked").hint(hint).into());
    }
    printer.question(question);
    let mut line = String::new();
    io::stdin().lock().take(PASSWORD_BYTES_MAX).read_line(&mut line).context("cannot read the answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The same without showing what is typed.
fn hidden(question: &str, printer: &Printer) -> anyhow::Result<String> {
    let stdin = io::stdin();
    let Ok(shown) = termios::tcgetattr(&stdin) else { return asked(question, printer) };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    termios::tcsetattr(&stdin, OptionalActions::Flush, &hidden).context("cannot hide the password")?;
    let answer = asked(question, printer);
    termios::tcsetattr(&stdin, OptionalActions::Flush, &shown).context("cannot show what is typed again")?;
    // The person's own line feed was hidden as well.
    printer.note("");
    answer
}

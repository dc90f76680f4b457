//! Programs that keep secrets: `docker-credential-NAME`.
//!
//! Source: docker-credential-helpers, "Development". Owns: the conversation with one. Does not own: which one is asked.

use std::{
    io::{self, Read as _, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::access::Credentials;

/// A helper may ask its user to unlock something, and a cloud's may ask the cloud. Longer and it hangs.
const ANSWER_MAX: Duration = Duration::from_mins(1);
/// Tokens are some kilobytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// What helpers say of a registry that they know nothing of.
const NOT_FOUND: &str = "credentials not found";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// What a helper has for a registry. One that is not installed has nothing: the file may come from another machine.
pub(super) fn get(helper: &str, key: &str) -> Result<Credentials, String> {
    let Some(answer) = ask(helper, "get", key.as_bytes())? else {
        tracing::warn!(
            "`docker-credential-{helper}` is not installed: going on without credentials for `{key}`"
        );
        return Ok(Credentials::Anonymous);
    };
    if !answer.is_success {
        if answer.text.contains(NOT_FOUND) {
            return Ok(Credentials::Anonymous);
        }
        return Err(answer.problem(helper));
    }
    let kept: Kept = serde_json::from_str(&answer.text)
        .map_err(|_| format!("`docker-credential-{helper}` answers what cannot be read"))?;
    Ok(Credentials::from_pair(kept.username, kept.secret))
}

/// Gives a helper something to keep.
pub(super) fn store(helper: &str, key: &str, credentials: &Credentials) -> Result<(), String> {
    let (username, secret) = credentials.clone().into_pair();
    let kept = Kept { server_url: key.to_owned(), username, secret };
    let input = serde_json::to_vec(&kept).expect("text always serialises");
    done(helper, ask(helper, "store", &input)?)
}

/// Has a helper forget a registry.
pub(super) fn erase(helper: &str, key: &str) -> Result<(), String> {
    done(helper, ask(helper, "erase", key.as_bytes())?)
}

fn done(helper: &str, answer: Option<Answer>) -> Result<(), String> {
    match answer {
        Some(answer) if answer.is_success || answer.text.contains(NOT_FOUND) => Ok(()),
        Some(answer) => Err(answer.problem(helper)),
        None => Err(format!("`docker-credential-{helper}` is not installed")),
    }
}

struct Answer {
    is_success: bool,
    text: String,
}

impl Answer {
    /// Helpers say what is wrong on stdout, where otherwise the secret is: only a short plain line of it is passed on.
    fn problem(&self, helper: &str) -> String {
        let line: String = self.text.lines().next().unwrap_or_default().chars().take(200).collect();
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("`docker-credential-{helper}` fails: {line}")
    }
}

/// Runs a helper; `None` if it is not installed.
fn ask(helper: &str, command: &str, input: &[u8]) -> Result<Option<Answer>, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !helper.chars().all(is_name) {
        return Err("the name of a credential helper has odd characters".to_owned());
    }
    let program = format!("docker-credential-{helper}");
    let mut spawned = Command::new(&program);
    spawned.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = match spawned.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot run `{program}`: {error}")),
    };
    // It may end before it has read everything: what it says then tells why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let (text, status) = wait(&mut child).map_err(|problem| format!("`{program}` {problem}"))?;
    Ok(Some(Answer { is_success: status.success(), text }))
}

/// Reads what a helper says until it ends, for a while.
fn wait(child: &mut Child) -> Result<(String, ExitStatus), String> {
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text);
        let _ = sender.send(read.map(|_| text));
    });
    let said = match receiver.recv_timeout(ANSWER_MAX) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("answers what cannot be read: {error}")),
        Err(_) => Err(format!("has not answered after {ANSWER_MAX:?}")),
    };
    if said.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    Ok((said?, status))
}

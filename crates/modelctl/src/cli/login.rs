//! What is typed to log in and out.
//!
//! Owns: these flags. Does not own: where credentials are kept (`registry`).

use clap::Args;

use super::RegistryArgs;

/// Keep credentials for a registry, once it has taken them
#[derive(Debug, Args)]
#[command(after_help = "\
The password comes from the terminal, or from stdin; never from the command line, which others can
see. It is kept where `docker login` keeps it, in a file for its owner only, or with the credential
helper that the file names; everything else in the file stays. Nothing is kept that the registry
does not take.

Example:
  $ modelctl login registry.example.org -u me
  $ modelctl login registry.example.org -u ci --password-stdin < /run/secrets/registry")]
pub(crate) struct LoginArgs {
    /// The registry, as HOST or HOST:PORT
    #[arg(value_name = "HOST", value_parser = host)]
    pub(crate) host: String,

    /// Who you are [default: asked]
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: Option<String>,

    /// Read the password from stdin
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  $ modelctl logout registry.example.org")]
pub(crate) struct LogoutArgs {
    /// The registry, as HOST or HOST:PORT
    #[arg(value_name = "HOST", value_parser = host)]
    pub(crate) host: String,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

fn host(text: &str) -> Result<String, &'static str> {
    let host = text.trim_start_matches("https://").trim_end_matches('/');
    if host.is_empty() || host.contains(|c: char| c == '/' || c == '@' || c.is_whitespace() || c.is_control())
    {
        return Err("it is HOST or HOST:PORT");
    }
    Ok(host.to_owned())
}

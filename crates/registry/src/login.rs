//! Whether a registry takes credentials, before they are kept.
//!
//! Owns: the question. Does not own: keeping them (`credentials`).

use reqwest::Method;

use crate::{access::Access, auth::Action, channel::Channel, error::RegistryError};

/// Asks `registry` (`HOST[:PORT]`) whether it takes these credentials. `false` if it lets everybody in and has not looked
/// at them.
///
/// # Errors
/// It does not take them (class [`crate::Class::Unauthorized`]), or cannot be asked.
pub async fn check_login(registry: &str, access: Access) -> Result<bool, RegistryError> {
    // The name of a repository is not part of the question.
    let channel = Channel::new(registry, "login", access)?;
    let mut ask = channel.ask(Method::GET, &[], "log in".to_owned());
    ask.action = Action::Login;
    ask.url = channel.base().join("/v2/").expect("a path makes a URL");
    let mut attempts = channel.patience().attempts();
    loop {
        match channel.send(&ask).await {
            Ok(answer) => {
                answer.settle().await;
                return Ok(channel.was_asked_for_proof(Action::Login).await);
            }
            Err(error) => attempts.pause_or_fail(error).await?,
        }
    }
}

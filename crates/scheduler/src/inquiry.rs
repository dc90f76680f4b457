//! Asking the schedulers of a fleet what they know, as one who is no peer.
//!
//! Owns: which of several is believed, and what it means that none answers. Does not own: how it is shown.

use std::{error::Error as _, io, time::Duration};

use futures_util::future::join_all;
use identity::{HINT_NO_KEY, Security};
use planner::{ArtifactId, PlanStatus};
use tokio::time::timeout;
use tonic::{Code, Response, Status, transport::Channel};
use wire::{
    PROTOCOL_VERSION,
    connection::{MESSAGE_BYTES_MAX, dial, explain, hint},
    control::{CurrentPlanRequest, StatusRequest, scheduler_client::SchedulerClient},
    plan_status::plan_status,
    schedulers::Schedulers,
    status::FleetStatus,
};

/// How long one scheduler may take: a person waits. Before keep-alive ends the connection, so that one that hangs is told
/// from one that hangs up.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What the schedulers of a fleet say.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// HOST:PORT of the one whose word counts.
    pub address: String,
    /// What that one knows.
    pub status: FleetStatus,
    /// All that were asked, in the order in which peers prefer them.
    pub schedulers: Vec<(String, Seen)>,
}

/// One scheduler as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It plans.
    Active,
    /// It leaves planning to another.
    Standby,
    /// It does not answer; and why.
    Silent(String),
}

/// The schedulers do not say anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InquiryError {
    /// Their only name does not resolve.
    #[error("the name of the schedulers does not resolve")]
    Name(#[source] io::Error),
    /// None answers; and why.
    #[error("no scheduler answers: {}", all(.0))]
    Silent(Vec<(String, String)>, Option<&'static str>),
}

fn all(reasons: &[(String, String)]) -> String {
    let reasons: Vec<String> =
        reasons.iter().map(|(address, reason)| format!("`{address}`: {reason}")).collect();
    reasons.join("; ")
}

impl InquiryError {
    /// What may be done about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Name(_) => {
                Some("look at the name in `--scheduler`, and at the name service of this machine")
            }
            Self::Silent(_, hint) => {
                Some(hint.unwrap_or("is it running, and does `--scheduler` name where it listens?"))
            }
        }
    }
}

/// Why one scheduler says nothing.
struct NoAnswer {
    reason: String,
    hint: Option<&'static str>,
}

/// Asks all of them, and believes the first in rank that plans; where all that answer stand by, the one that they name.
///
/// # Errors
/// If none answers.
pub async fn inquire(schedulers: &Schedulers, security: &Security) -> Result<Inquiry, InquiryError> {
    let ranked = schedulers.ranked().await.map_err(InquiryError::Name)?;
    let answers = join_all(ranked.iter().map(|address| ask(address, security))).await;
    let mut found: Vec<(String, Result<FleetStatus, NoAnswer>)> = ranked.into_iter().zip(answers).collect();
    let is_active = |(_, answer): &(String, Result<FleetStatus, NoAnswer>)| {
        answer.as_ref().is_ok_and(|status| status.redirect.is_none())
    };
    if !found.iter().any(is_active) {
        let named = found.iter().find_map(|(_, answer)| answer.as_ref().ok()?.redirect.clone());
        if let Some(named) = named.filter(|named| found.iter().all(|(address, _)| address != named)) {
            let answer = ask(&named, security).await;
            found.insert(0, (named, answer));
        }
    }
    let best =
        found.iter().position(is_active).or_else(|| found.iter().position(|(_, answer)| answer.is_ok()));
    let schedulers = found.iter().map(|(address, answer)| (address.clone(), seen(answer))).collect();
    let Some((address, Ok(status))) = best.map(|best| found.swap_remove(best)) else {
        return Err(silent(found));
    };
    Ok(Inquiry { address, status, schedulers })
}

fn silent(found: Vec<(String, Result<FleetStatus, NoAnswer>)>) -> InquiryError {
    let silences = found.into_iter().filter_map(|(address, answer)| Some((address, answer.err()?)));
    let silences: Vec<(String, NoAnswer)> = silences.collect();
    let hint = silences.iter().find_map(|(_, silence)| silence.hint);
    let reasons = silences.into_iter().map(|(address, silence)| (address, silence.reason));
    InquiryError::Silent(reasons.collect(), hint)
}

fn seen(answer: &Result<FleetStatus, NoAnswer>) -> Seen {
    match answer {
        Ok(status) if status.redirect.is_none() => Seen::Active,
        Ok(_) => Seen::Standby,
        Err(silence) => Seen::Silent(silence.reason.clone()),
    }
}

/// The connection ended before an answer came.
fn hung_up(status: &Status, security: &Security) -> NoAnswer {
    match security {
        Security::Plain => {
            let reason = "it hung up, as one does that has a fleet key".to_owned();
            NoAnswer { reason, hint: Some(HINT_NO_KEY) }
        }
        Security::Fleet(_) => {
            let otherwise = "compare `date -u` and the key files of both machines";
            NoAnswer { reason: explain(status), hint: hint(status).or(Some(otherwise)) }
        }
    }
}

async fn ask(address: &str, security: &Security) -> Result<FleetStatus, NoAnswer> {
    let question =
        async |mut client: Client| client.status(StatusRequest { protocol_version: PROTOCOL_VERSION }).await;
    let reply = answer(address, security, question).await?;
    FleetStatus::try_from(reply).map_err(|error| silence(&error))
}

/// Asks one scheduler for the plan that it has of a swarm; `None` if nobody there has or wants the artifact.
///
/// # Errors
/// If it does not answer.
pub async fn current_plan(
    address: &str,
    security: &Security,
    artifact: ArtifactId,
) -> Result<Option<PlanStatus>, InquiryError> {
    let request = CurrentPlanRequest { protocol_version: PROTOCOL_VERSION, artifact: artifact.0.to_vec() };
    let question = async |mut client: Client| client.current_plan(request).await;
    let reply = answer(address, security, question).await;
    let plan = reply.and_then(|reply| plan_status(reply).map_err(|error| silence(&error)));
    plan.map_err(|NoAnswer { reason, hint }| InquiryError::Silent(vec![(address.to_owned(), reason)], hint))
}

type Client = SchedulerClient<Channel>;

fn silence(error: &(dyn std::error::Error + 'static)) -> NoAnswer {
    NoAnswer { reason: explain(error), hint: hint(error) }
}

/// What one scheduler answers, in time.
async fn answer<T>(
    address: &str,
    security: &Security,
    question: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
) -> Result<T, NoAnswer> {
    let asking = async {
        let channel = dial(format!("http://{address}"), security).await.map_err(|error| silence(&error))?;
        let client = SchedulerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = question(client).await.map_err(|status| match status.code() {
            Code::Unimplemented => NoAnswer {
                reason: "it does not know this question".to_owned(),
                hint: Some("run the same version of modelctl everywhere"),
            },
            // Whether its last words arrive when the other side hangs up is a matter of luck.
            _ if status.source().is_some() => hung_up(&status, security),
            _ => silence(&status),
        })?;
        Ok(reply.into_inner())
    };
    let late = |_| NoAnswer { reason: format!("no answer within {} s", ANSWER_MAX.as_secs()), hint: None };
    timeout(ANSWER_MAX, asking).await.map_err(late)?
}

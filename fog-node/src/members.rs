//! Members change members: an organisation raises its voice by a signed transaction; its own node carries it to the others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ledger::{
    block::Height,
    committee::{Change, Voice},
    genesis::Genesis,
    state::Outcome,
    transaction::{Action, Author, Transaction},
};
use record::{canonical::MEDIA_TYPE, ids::OrganizationId, signature::SigningKey};
use reqwest::{Response, StatusCode, header};
use serde::Deserialize;

/// The node may take this long to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The node may wait this long for the block, in milliseconds.
const WAIT_MS: u64 = 15_000;

/// Why a voice was not raised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node does not answer.
    #[error("the node does not answer: {0}")]
    Silent(#[from] reqwest::Error),
    /// It says no, and why.
    #[error("the node refuses: {0}")]
    Refused(String),
    /// It is final, and the state did not take it.
    #[error("the voice is in a block and has no effect: {0}")]
    NoEffect(ledger::state::Refused),
    /// It waits still.
    #[error("the voice {0} was taken, and is not final yet: look at /api/v1/members before it is raised again")]
    NotFinal(String),
    /// The clock of this machine stands before 1970.
    #[error("this machine's clock stands before 1970")]
    Clock,
}

#[derive(Deserialize)]
struct Head {
    height: Height,
}

#[derive(Deserialize)]
struct Accepted {
    id: String,
}

#[derive(Deserialize)]
struct Became {
    outcome: Outcome,
}

/// Signs a voice for a change as the organisation, hands it to the node at `url`, and gives the node's word on the block
/// that it took effect in.
///
/// # Errors
/// [`Error`].
pub async fn raise(
    (client, url): (&reqwest::Client, &str),
    genesis: &Genesis,
    (organization, key): (OrganizationId, &SigningKey),
    change: Change,
) -> Result<String, Error> {
    let head = client.get(format!("{url}/api/v1/chain/head")).timeout(ANSWER_TIMEOUT);
    let head: Head = good(head.send().await?).await?.json().await?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Error::Clock)?;
    let voice = Voice {
        change,
        epoch: genesis.policy.epoch_of(head.height.next()),
    };
    let transaction = Transaction {
        network: genesis.network(),
        author: Author::Organization(organization),
        // A second voice for the same change, after the first has lapsed, is another transaction.
        sequence: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        action: Action::Voice(voice),
    };
    let submitted = client
        .post(format!("{url}/api/v1/transactions"))
        .timeout(ANSWER_TIMEOUT)
        .header(header::CONTENT_TYPE, MEDIA_TYPE)
        .body(transaction.sign(key).encode());
    let Accepted { id } = good(submitted.send().await?).await?.json().await?;
    let outcome = client
        .get(format!("{url}/api/v1/transactions/{id}?wait_ms={WAIT_MS}"))
        .timeout(ANSWER_TIMEOUT);
    let text = good(outcome.send().await?).await?.text().await?;
    match serde_json::from_str(&text) {
        Ok(Became {
            outcome: Outcome::Applied,
        }) => Ok(text),
        Ok(Became {
            outcome: Outcome::Refused(why),
        }) => Err(Error::NoEffect(why)),
        Err(_) => Err(Error::NotFinal(id)),
    }
}

async fn good(answer: Response) -> Result<Response, Error> {
    if matches!(answer.status(), StatusCode::OK | StatusCode::ACCEPTED) {
        return Ok(answer);
    }
    let status = answer.status();
    Err(Error::Refused(format!("{status}: {}", answer.text().await?)))
}

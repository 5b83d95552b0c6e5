//! An organisation decides: its own node is handed a signed transaction, carries it to the others, and says what came of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ledger::{
    block::Height,
    genesis::Genesis,
    state::Outcome,
    transaction::{Action, Author, Transaction},
};
use record::{canonical::MEDIA_TYPE, ids::OrganizationId, signature::SigningKey};
use reqwest::{Client, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};

/// The node may take this long to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The node may wait this long for the block, in milliseconds.
const WAIT_MS: u64 = 15_000;

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node does not answer.
    #[error("the node does not answer: {0}")]
    Silent(#[from] reqwest::Error),
    /// It says no, and why.
    #[error("the node refuses: {0}")]
    Refused(String),
    /// It is final, and the state did not take it.
    #[error("it is in a block and has no effect: {0}")]
    NoEffect(ledger::state::Refused),
    /// It waits still.
    #[error(
        "transaction {0} was taken, and is not final yet: look at /api/v1/transactions/{0} before it is sent again"
    )]
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

/// The node of an organisation, and the organisation's key.
#[derive(Debug)]
pub struct Desk<'a> {
    /// A client that the node knows.
    pub client: Client,
    /// Where the node answers.
    pub url: String,
    /// The network.
    pub genesis: &'a Genesis,
    /// Who decides.
    pub organization: OrganizationId,
    /// With this key.
    pub key: SigningKey,
}

impl Desk<'_> {
    /// The height of the node's head.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn height(&self) -> Result<Height, Error> {
        let head: Head = self.ask("/api/v1/chain/head").await?;
        Ok(head.height)
    }

    /// What the node answers to a question.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let question = self.client.get(format!("{}{path}", self.url)).timeout(ANSWER_TIMEOUT);
        Ok(good(question.send().await?).await?.json().await?)
    }

    /// Signs an action, hands it to the node, and gives the node's word on the block that it took effect in.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn decide(&self, action: Action) -> Result<String, Error> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Error::Clock)?;
        let transaction = Transaction {
            network: self.genesis.network(),
            author: Author::Organization(self.organization.clone()),
            // The same decision again, after the first came to nothing, is another transaction.
            sequence: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            action,
        };
        let submitted = self
            .client
            .post(format!("{}/api/v1/transactions", self.url))
            .timeout(ANSWER_TIMEOUT)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(transaction.sign(&self.key).encode());
        let Accepted { id } = good(submitted.send().await?).await?.json().await?;
        let outcome = self
            .client
            .get(format!("{}/api/v1/transactions/{id}?wait_ms={WAIT_MS}", self.url))
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
}

async fn good(answer: Response) -> Result<Response, Error> {
    if matches!(answer.status(), StatusCode::OK | StatusCode::ACCEPTED) {
        return Ok(answer);
    }
    let status = answer.status();
    Err(Error::Refused(format!("{status}: {}", answer.text().await?)))
}

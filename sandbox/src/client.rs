//! What the sandbox asks fog nodes and the gateway over HTTP: as a stranger would, with a deadline on every question.

use std::{path::Path, time::Duration};

use cid::Cid;
use ledger::{
    admission::Admission,
    handover::Handovers,
    state::Outcome,
    transaction::{SignedTransaction, TransactionId},
};
use record::{
    canonical::{Digest, MEDIA_TYPE},
    ids::{BundleId, SubjectId},
};
use reqwest::{Certificate, Identity, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{fault::Fault, identities::TlsIdentity};

/// How long an answer may take that is not asked to wait.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a node is asked to hold a question whose answer is not there yet, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// Observations on one page.
const PAGE_COUNT: u32 = 200;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answered, or not in time: ask again.
    #[error("no answer: {0}")]
    Unreachable(#[from] reqwest::Error),
    /// The answer is a refusal.
    #[error("{status}: {diagnostics}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The sentence of its OperationOutcome.
        diagnostics: String,
    },
    /// The answer is not of the promised shape.
    #[error("the answer is not what the API promises: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether the same question may be answered later.
    #[must_use]
    pub fn may_pass_later(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::CONFLICT || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Malformed(_) => false,
        }
    }
}

impl CallError {
    /// Whether the node does not know what was asked for.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A node's head, as `/api/v1/chain/head` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Head {
    /// Height of the last block applied.
    pub height: u64,
    /// Its digest.
    pub digest: Digest,
    /// The rolling digest of the state.
    pub state_digest: Digest,
}

/// A block, as `/api/v1/chain/blocks/{height}` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct BlockSummary {
    /// Its digest.
    pub digest: Digest,
    /// What it orders.
    pub transactions: Vec<TransactionSummary>,
}

/// A transaction in a block.
#[derive(Clone, Debug, Deserialize)]
pub struct TransactionSummary {
    /// The bundle, if it commits to one.
    pub bundle: Option<BundleId>,
}

/// A page of a FHIR searchset: its resources, and the address of the next page.
#[derive(Debug)]
pub struct Page {
    /// The resources that match, each as its exact JSON text.
    pub resources: Vec<Box<serde_json::value::RawValue>>,
    /// Where the next page is.
    pub next: Option<String>,
}

/// Builds the HTTP clients of one run: only its own certificate authority is trusted.
#[derive(Clone, Debug)]
pub struct Callers {
    authority: Certificate,
}

impl Callers {
    /// Clients that trust the authority in this PEM text.
    ///
    /// # Errors
    /// [`Fault::Identity`].
    pub fn trusting(authority_pem: &str) -> Result<Self, Fault> {
        let authority = Certificate::from_pem(authority_pem.as_bytes()).map_err(Fault::identity("an HTTP client"))?;
        Ok(Self { authority })
    }

    /// A client without a certificate: anybody, or the bearer of a token.
    ///
    /// # Errors
    /// [`Fault::Identity`].
    pub fn anybody(&self) -> Result<reqwest::Client, Fault> {
        self.builder().build().map_err(Fault::identity("an HTTP client"))
    }

    /// A client that shows this certificate.
    ///
    /// # Errors
    /// [`Fault::File`] or [`Fault::Identity`].
    pub fn with_certificate(&self, identity: &TlsIdentity) -> Result<reqwest::Client, Fault> {
        let read = |path: &Path| std::fs::read(path).map_err(Fault::file(path));
        let pem = [read(&identity.private_key)?, read(&identity.certificate)?].concat();
        let identity = Identity::from_pem(&pem).map_err(Fault::identity("an HTTP client"))?;
        self.builder()
            .identity(identity)
            .build()
            .map_err(Fault::identity("an HTTP client"))
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .tls_certs_only([self.authority.clone()])
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(2))
            .timeout(ANSWER_MAX)
    }
}

/// One fog node's HTTP interface.
#[derive(Clone, Debug)]
pub struct Node {
    http: reqwest::Client,
    base: String,
}

impl Node {
    /// The node at this address (`https://127.0.0.1:8401`).
    #[must_use]
    pub fn at(http: reqwest::Client, base: impl Into<String>) -> Self {
        Self {
            http,
            base: base.into(),
        }
    }

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let answer = self.get("/readyz").timeout(Duration::from_secs(2)).send().await;
        answer.is_ok_and(|a| a.status().is_success())
    }

    /// Its head.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn head(&self) -> Result<Head, CallError> {
        json(
            self.get("/api/v1/chain/head")
                .timeout(Duration::from_secs(5))
                .send()
                .await?,
        )
        .await
    }

    /// The committees, as it tells of them.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn handovers(&self) -> Result<Handovers, CallError> {
        json(self.get("/api/v1/chain/validators").send().await?).await
    }

    /// The block at a height.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn block(&self, height: u64) -> Result<BlockSummary, CallError> {
        json(self.get(&format!("/api/v1/chain/blocks/{height}")).send().await?).await
    }

    /// The text of a bundle's receipt, if it is final.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn receipt(&self, bundle: &BundleId) -> Result<Option<String>, CallError> {
        let answer = self
            .get(&format!("/api/v1/receipts/{bundle}?wait_ms={WAIT_MS}"))
            .send()
            .await?;
        if answer.status() == StatusCode::ACCEPTED {
            return Ok(None);
        }
        text(answer).await.map(Some)
    }

    /// A sealed payload by its CID, as a trustless IPFS gateway serves it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn payload(&self, cid: &Cid) -> Result<Vec<u8>, CallError> {
        let answer = checked(self.get(&format!("/ipfs/{cid}?format=raw")).send().await?).await?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// Hands over a signed transaction.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn submit(&self, transaction: &SignedTransaction) -> Result<(), CallError> {
        let request = self.http.post(format!("{}/api/v1/transactions", self.base));
        let request = request.header("content-type", MEDIA_TYPE).body(transaction.encode());
        checked(request.send().await?).await.map(|_| ())
    }

    /// Hands over a sealed bundle with its commitment, as the gateway whose certificate the client shows.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn hand_in(&self, submission: Vec<u8>) -> Result<Admission, CallError> {
        let request = self.http.post(format!("{}/api/v1/bundles", self.base));
        let request = request.header("content-type", MEDIA_TYPE).body(submission);
        json(request.send().await?).await
    }

    /// At which height a transaction became final and what became of it, if it is final by now.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn settled(&self, id: &TransactionId) -> Result<Option<(u64, Outcome)>, CallError> {
        #[derive(Deserialize)]
        struct Settled {
            height: u64,
            outcome: Outcome,
        }
        let answer = self
            .get(&format!("/api/v1/transactions/{id}?wait_ms={WAIT_MS}"))
            .send()
            .await?;
        if answer.status() == StatusCode::ACCEPTED {
            return Ok(None);
        }
        json(answer)
            .await
            .map(|Settled { height, outcome }| Some((height, outcome)))
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn metrics(&self) -> Result<String, CallError> {
        text(self.get("/metrics").timeout(Duration::from_secs(5)).send().await?).await
    }

    /// One page of a patient's observations: the first, or the one at `next`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn observations(&self, patient: SubjectId, token: &str, next: Option<&str>) -> Result<Page, CallError> {
        match next {
            Some(url) => self.search(url.to_owned(), token).await,
            None => self.newest(patient, PAGE_COUNT, token).await,
        }
    }

    /// A patient's newest observations, this many of them at most.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn newest(&self, patient: SubjectId, count: u32, token: &str) -> Result<Page, CallError> {
        let url = format!("{}/fhir/Observation?patient={patient}&_count={count}", self.base);
        self.search(url, token).await
    }

    async fn search(&self, url: String, token: &str) -> Result<Page, CallError> {
        let bundle: Searchset = json(self.http.get(url).bearer_auth(token).send().await?).await?;
        let next = bundle
            .link
            .into_iter()
            .find(|link| link.relation == "next")
            .map(|link| link.url);
        let matches = bundle.entry.into_iter().filter(|entry| entry.search.mode == "match");
        Ok(Page {
            resources: matches.map(|entry| entry.resource).collect(),
            next,
        })
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }
}

#[derive(Deserialize)]
struct Searchset {
    link: Vec<Link>,
    #[serde(default)]
    entry: Vec<SearchEntry>,
}

#[derive(Deserialize)]
struct Link {
    relation: String,
    url: String,
}

#[derive(Deserialize)]
struct SearchEntry {
    resource: Box<serde_json::value::RawValue>,
    search: SearchMode,
}

/// `match`, or `outcome`: a remark about the search, which is no resource that was searched for.
#[derive(Deserialize)]
struct SearchMode {
    mode: String,
}

/// The answer, if it is a success; else the sentence of its OperationOutcome.
async fn checked(answer: Response) -> Result<Response, CallError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = answer.text().await.unwrap_or_default();
    let outcome: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let diagnostics = outcome["issue"][0]["diagnostics"].as_str().map_or(text, str::to_owned);
    Err(CallError::Refused { status, diagnostics })
}

async fn text(answer: Response) -> Result<String, CallError> {
    Ok(checked(answer).await?.text().await?)
}

/// Reads the JSON of a successful answer.
///
/// # Errors
/// [`CallError`].
pub async fn json<T: DeserializeOwned>(answer: Response) -> Result<T, CallError> {
    let text = text(answer).await?;
    serde_json::from_str(&text).map_err(|e| CallError::Malformed(e.to_string()))
}

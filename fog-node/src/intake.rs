//! Check, keep, queue: what gateways and organisations hand in, up to the mempool - the one turn of the straight line.

use std::time::Duration;

use ledger::{
    admission::{Admission, MatchedSubmission},
    state::{Outcome, Refused},
    transaction::{Author, SignedTransaction, TransactionId},
};
use record::{
    ids::{BundleId, GatewayId},
    signature::SigningKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    chain::{self, Chain},
    mempool::{Mempool, Pending},
    turnstile::Turnstile,
    vault::{self, Vault},
};

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Submissions of one gateway that are worked on at a time; a gateway that sends more is told to wait.
    pub in_flight_per_gateway_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight_per_gateway_max: 64,
        }
    }
}

/// How long a sender waits before it tries again, when it was told to.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why something was not taken; the variants differ in what the sender does next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Never send these bytes again over this connection: they are somebody else's.
    #[error("the commitment was signed for another author than the gateway that sends it")]
    NotTheAuthor,
    /// Never send these bytes again: they break a rule.
    #[error("{0}")]
    Refused(Refused),
    /// Send again later or elsewhere: the chain does not know the author or a name yet.
    #[error("{0}; if it was just enrolled, send it again when that is final")]
    Early(Refused),
    /// Send again later: too much at once.
    #[error("{0}")]
    Busy(&'static str),
    /// Send again later or elsewhere: the vault did not keep it.
    #[error("the payload could not be kept")]
    Vault(#[from] vault::Error),
    /// Send again later or elsewhere: the chain could not be read.
    #[error("the chain could not be read")]
    Chain(#[from] chain::Error),
}

/// The state of something that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the mempool of this node.
    Admitted,
    /// Applied at a height.
    Final(ledger::block::Height),
}

/// The room: everything it needs, owned.
#[derive(Debug)]
pub struct Intake {
    chain: Chain,
    mempool: Mempool,
    vault: Vault,
    key: SigningKey,
    gateways: Turnstile<GatewayId>,
}

impl Intake {
    /// Opens the room; `key` signs admissions.
    #[must_use]
    pub fn new(config: &Config, key: SigningKey, chain: Chain, mempool: Mempool, vault: Vault) -> Self {
        Self {
            chain,
            mempool,
            vault,
            key,
            gateways: Turnstile::new(config.in_flight_per_gateway_max),
        }
    }

    /// Takes a gateway's bundle: durable in the vault first, queued second, admitted last. A known bundle is admitted
    /// again, so that a gateway may repeat itself.
    ///
    /// # Errors
    /// [`Error`] says whether to send it again.
    pub async fn admit(&self, gateway: &GatewayId, submission: MatchedSubmission) -> Result<Admission, Error> {
        let result = self.admitted(gateway, submission).await;
        metrics::counter!("fog_intake_submissions_total", "outcome" => outcome(&result)).increment(1);
        result
    }

    async fn admitted(&self, gateway: &GatewayId, submission: MatchedSubmission) -> Result<Admission, Error> {
        let claims = submission.transaction().claims();
        if claims.author != Author::Gateway(gateway.clone()) {
            return Err(Error::NotTheAuthor);
        }
        if claims.sequence != 0 {
            // Checked here although the state refuses it too: there the refusal looks as if it might pass later.
            return Err(Error::Refused(Refused::NotAllowed));
        }
        let _inside = self
            .gateways
            .enter(gateway)
            .ok_or(Error::Busy("too many submissions of this gateway at once"))?;
        let bundle = submission.commitment().bundle;
        if self.progress(&bundle).await?.is_none() {
            check(self.chain.state().admit(submission.transaction()))?;
            let copy = bytes::Bytes::from(submission.encode());
            let (transaction, payload) = submission.into_parts();
            let held = self.vault.put(payload.into()).await?;
            self.vault.replicate(&copy);
            let pending = Pending::bundle(transaction, held).expect("a matched submission commits to its own payload");
            self.queue(pending)?;
            tracing::debug!(%bundle, %gateway, "admitted");
        }
        Ok(Admission::sign(
            bundle,
            jiff::Timestamp::now().as_millisecond(),
            &self.key,
        ))
    }

    /// Keeps what another node admitted: its payload on the disk, its commitment queued. What the state does not admit is
    /// not kept, so that no peer can fill this node's disk with bytes of its own.
    ///
    /// # Errors
    /// [`Error`] says whether to send it again.
    pub async fn keep(&self, submission: MatchedSubmission) -> Result<(), Error> {
        check(self.chain.state().admit(submission.transaction()))?;
        let is_final = matches!(
            self.progress(&submission.commitment().bundle).await?,
            Some(Progress::Final(_))
        );
        let (transaction, payload) = submission.into_parts();
        let held = self.vault.put(payload.into()).await?;
        if !is_final {
            let pending = Pending::bundle(transaction, held).expect("a matched submission commits to its own payload");
            // A full mempool here is no loss: the node that admitted it has it, and proposes it.
            let _queued = self.mempool.receive(pending);
        }
        Ok(())
    }

    /// Takes an organisation's transaction. Its signature says who it is from, so it may come from anywhere.
    ///
    /// # Errors
    /// [`Error`] says whether to send it again.
    pub async fn accept(&self, transaction: SignedTransaction) -> Result<TransactionId, Error> {
        let id = transaction.id();
        let known = self.mempool.contains(&id)
            || self
                .chain
                .transaction(&id)
                .await?
                .is_some_and(|p| p.outcome == Outcome::Applied);
        if !known {
            check(self.chain.state().admit(&transaction))?;
            // A commitment without its payload: only a gateway may make one, and it hands in both.
            let pending = Pending::plain(transaction).map_err(|_| Error::Refused(Refused::NotAllowed))?;
            self.queue(pending)?;
            tracing::debug!(transaction = %id, "accepted");
        }
        Ok(id)
    }

    /// Where a bundle stands, as far as this node knows.
    ///
    /// # Errors
    /// [`chain::Error`].
    pub async fn progress(&self, bundle: &BundleId) -> Result<Option<Progress>, chain::Error> {
        // The mempool first: a bundle leaves it only after its block was appended, so it is always found in one of them.
        if self.mempool.bundle(bundle) {
            return Ok(Some(Progress::Admitted));
        }
        let placed = self.chain.bundle(bundle).await?;
        // A refused commitment is not final: it may be handed in again and take effect.
        Ok(placed
            .filter(|p| p.outcome == Outcome::Applied)
            .map(|p| Progress::Final(p.height)))
    }

    fn queue(&self, pending: Pending) -> Result<(), Error> {
        let busy = |_| Error::Busy("too many transactions wait for a block");
        self.mempool.insert(pending).map(|_new| ()).map_err(busy)
    }
}

/// Splits a refusal by what the sender does next.
fn check(admitted: Result<(), Refused>) -> Result<(), Error> {
    admitted.map_err(|refused| {
        if refused.may_pass_later() {
            Error::Early(refused)
        } else {
            Error::Refused(refused)
        }
    })
}

const fn outcome(result: &Result<Admission, Error>) -> &'static str {
    match result {
        Ok(_) => "admitted",
        Err(Error::NotTheAuthor | Error::Refused(_)) => "refused",
        Err(Error::Early(_)) => "early",
        Err(Error::Busy(_)) => "busy",
        Err(Error::Vault(_) | Error::Chain(_)) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_later_is_not_refused_for_good() {
        assert!(matches!(check(Err(Refused::UnknownName)), Err(Error::Early(_))));
        assert!(matches!(check(Err(Refused::WrongSignature)), Err(Error::Refused(_))));
        assert!(check(Ok(())).is_ok());
    }
}

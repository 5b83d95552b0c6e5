//! What stands between the engine and a vote: the checks of the application before the first vote, and the payloads, held
//! here or erased for good, before the second.
//!
//! The engine asks twice. `verify` comes before the vote to notarize and runs every check. `certify` comes before the vote
//! to finalize; the engine's own adapter answers it as soon as the block is on the disk, also on a node whose `verify` was
//! still waiting. **Invariant:** this node's vote to finalize says that it holds every payload of the block, but those whose key
//! has a final tombstone: nobody keeps these, and their commitments are refused. The rules were checked by the f + 1 honest
//! validators without whom there is no notarization.

use std::sync::Arc;

use commonware_actor::Feedback;
use commonware_consensus::{
    Automaton, CertifiableAutomaton, Handoff, Relay, Reporter,
    marshal::{core::DigestFallback, standard::Inline},
    simplex::{Plan, types::Activity},
    types::{FixedEpocher, Round},
};
use commonware_cryptography::ed25519::PublicKey;
use commonware_macros::select;
use commonware_utils::channel::oneshot;

use super::{
    Payloads,
    application::Application,
    codec::{EngineBlock, EngineContext, EngineDigest},
    delivery::Marshal,
    engine::Runtime,
    scheme::Scheme,
};

/// The engine's adapter around our application.
type Checked<E, P> = Inline<E, Scheme, Application<P>, EngineBlock, FixedEpocher>;

/// What the engine asks; clones share it.
pub(super) struct Ballot<E: Runtime, P: Payloads> {
    context: Arc<E>,
    application: Application<P>,
    marshal: Marshal,
    checked: Checked<E, P>,
}

impl<E: Runtime, P: Payloads> Clone for Ballot<E, P> {
    fn clone(&self) -> Self {
        Self {
            context: Arc::clone(&self.context),
            application: self.application.clone(),
            marshal: self.marshal.clone(),
            checked: self.checked.clone(),
        }
    }
}

impl<E: Runtime, P: Payloads> Ballot<E, P> {
    pub(super) fn new(context: &E, application: Application<P>, marshal: Marshal, epocher: FixedEpocher) -> Self {
        let adapter = context.child("application");
        Self {
            context: Arc::new(context.child("ballot")),
            checked: Inline::new(adapter, application.clone(), marshal.clone(), epocher),
            application,
            marshal,
        }
    }
}

impl<E: Runtime, P: Payloads> Automaton for Ballot<E, P> {
    type Context = EngineContext;
    type Digest = EngineDigest;

    async fn propose(&mut self, context: EngineContext) -> oneshot::Receiver<EngineDigest> {
        self.checked.propose(context).await
    }

    async fn verify(&mut self, context: EngineContext, digest: EngineDigest) -> oneshot::Receiver<bool> {
        self.checked.verify(context, digest).await
    }
}

impl<E: Runtime, P: Payloads> CertifiableAutomaton for Ballot<E, P> {
    async fn prepare(&mut self, context: EngineContext) -> oneshot::Receiver<Handoff<EngineDigest>> {
        self.checked.prepare(context).await
    }

    /// Answers when the block is durable and all its payloads are, or are erased for good; until then never, and the engine's
    /// timeouts end the wait. That goes well: a quorum minus the faulty ones holds the payloads, or the block would not be
    /// notarized, and what makes them erase one is a final tombstone, which reaches everybody.
    async fn certify(&mut self, round: Round, digest: EngineDigest) -> oneshot::Receiver<bool> {
        let durable = self.checked.certify(round, digest).await;
        let block = self
            .marshal
            .subscribe_by_digest(digest, DigestFallback::FetchByRound { round });
        let application = self.application.clone();
        let (mut answer, asked) = oneshot::channel();
        self.context
            .child("certify")
            .with_attribute("round", round)
            .spawn(move |clock| async move {
                let certified = async {
                    let block = block.await.ok()?;
                    application.until_held(&clock, block.inner().block()).await;
                    durable.await.ok()
                };
                select! {
                    _ = answer.closed() => {},
                    certified = certified => {
                        // Dropped without an answer when the engine stops: it takes that for no answer.
                        if let Some(certified) = certified {
                            let _ = answer.send(certified);
                        }
                    },
                }
            });
        asked
    }
}

impl<E: Runtime, P: Payloads> Relay for Ballot<E, P> {
    type Digest = EngineDigest;
    type PublicKey = PublicKey;
    type Plan = Plan<PublicKey>;

    fn broadcast(&mut self, digest: EngineDigest, plan: Plan<PublicKey>) -> Feedback {
        self.checked.broadcast(digest, plan)
    }
}

impl<E: Runtime, P: Payloads> Reporter for Ballot<E, P> {
    type Activity = Activity<Scheme, EngineDigest>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        self.checked.report(activity)
    }
}

//! One bundle's way to a verified receipt: submit, wait, and whatever goes wrong, the next node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ledger::admission::Admission;
use tokio::time::Instant;

use super::{
    node::{Node, Nodes, Reply},
    voters::Voters,
};
use crate::outbox::{Final, Outbox, Stored, Ticket, Why, now_ms};

/// A bundle on its way: what is known of it from the flights before.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    pub(super) ticket: Ticket,
    /// Flights that no node was ready for.
    pub(super) laid_by: u32,
    /// The nodes that refuse it for good.
    refused_by: BTreeSet<usize>,
}

impl Bundle {
    /// One that has not flown yet.
    pub(super) const fn new(ticket: Ticket) -> Self {
        Self {
            ticket,
            laid_by: 0,
            refused_by: BTreeSet::new(),
        }
    }
}

/// How a flight ended.
#[derive(Debug)]
pub(super) enum Landing {
    /// With a verified receipt.
    Final(Box<Final>),
    /// Nothing is wrong with the nodes, but they are not ready for it: its subject's key is not announced, say.
    LaidBy(Bundle),
    /// More nodes than may lie refuse it for good, or its bytes are not those that were sealed.
    SetAside { order: u64, why: Why },
    /// It was not in the outbox any more.
    Gone,
    /// The outbox cannot be read.
    Failed(redb::Error),
}

/// Why this node did not bring the bundle home now.
enum Miss {
    /// The node fails or lies: leave it alone for a while, at least this long.
    Node(Option<Duration>),
    /// Nothing is wrong with the node; it only is not ready for this bundle.
    Later,
    /// The node refuses these bytes for good.
    Refused(String),
}

/// What every flight needs.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) nodes: Arc<Nodes>,
    pub(super) outbox: Outbox,
    pub(super) voters: Voters,
}

impl Flight {
    /// Flies until the bundle is final or refused, or each node was asked once and none is ready for it: a flight that
    /// waited for them would hold up the others.
    pub(super) async fn fly(self, mut bundle: Bundle) -> Landing {
        let ticket = bundle.ticket;
        // One node's word is not enough to give a bundle up: it takes one more than may lie, also if fewer are named.
        let refusals_needed = self.voters.liars_max() + 1;
        let (mut turn, mut not_ready) = (ticket.order.wrapping_add(u64::from(bundle.laid_by)), 0);
        while not_ready < self.nodes.len() {
            let submission = match self.submission(ticket).await {
                Ok(Stored::Intact(submission)) => submission,
                Ok(Stored::Gone) => return Landing::Gone,
                Ok(Stored::Damaged) => {
                    tracing::error!(bundle = %ticket.bundle, "the disk has damaged a bundle: set aside, not sent");
                    return set_aside(&ticket, Why::Damaged);
                }
                Err(error) => return Landing::Failed(error),
            };
            let Some((index, node)) = self.nodes.ready(turn, &bundle.refused_by).await else {
                break;
            };
            turn = turn.wrapping_add(1);
            match self.attempt(node, &ticket, submission).await {
                Ok(done) => return Landing::Final(Box::new(done)),
                Err(Miss::Node(at_least)) => node.failed(at_least),
                Err(Miss::Later) => not_ready += 1,
                Err(Miss::Refused(reason)) => {
                    // The node is not asked about this bundle again: it would say the same, at once, and for ever.
                    bundle.refused_by.insert(index);
                    if bundle.refused_by.len() >= refusals_needed {
                        tracing::error!(bundle = %ticket.bundle, reason, "the fog refuses a bundle for good: set aside");
                        return set_aside(&ticket, Why::Refused(reason));
                    }
                    if bundle.refused_by.len() == self.nodes.len() {
                        tracing::error!(
                            bundle = %ticket.bundle, reason, needed = refusals_needed,
                            "each node of uplink.nodes refuses a bundle for good, too few to be believed: it waits; name more"
                        );
                    }
                }
            }
            metrics::counter!("gateway_uplink_retries_total").increment(1);
        }
        bundle.laid_by = bundle.laid_by.saturating_add(1);
        Landing::LaidBy(bundle)
    }

    async fn submission(&self, ticket: Ticket) -> Result<Stored, redb::Error> {
        let outbox = self.outbox.clone();
        let read = tokio::task::spawn_blocking(move || outbox.submission(&ticket)).await;
        read.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    async fn attempt(&self, node: &Node, ticket: &Ticket, submission: Vec<u8>) -> Result<Final, Miss> {
        match node.submit(submission).await {
            Reply::Done(body) => self.admission(node, &body, ticket).await?,
            other => return Err(other.into()),
        }
        node.succeeded();
        let deadline = Instant::now() + node.final_timeout();
        while Instant::now() < deadline {
            match node.receipt(&ticket.bundle).await {
                Reply::Done(text) => return self.receipt(node, &text, ticket).await,
                Reply::Waiting => {}
                other => return Err(other.into()),
            }
        }
        Err(Miss::Later)
    }

    /// The node's signed word, if it is genuine, by a validator, and about this bundle.
    async fn admission(&self, node: &Node, body: &[u8], ticket: &Ticket) -> Result<(), Miss> {
        let admission = serde_json::from_slice::<Admission>(body)
            .ok()
            .filter(|admission| admission.bundle == ticket.bundle && admission.is_genuine());
        let Some(admission) = admission else {
            return Err(lies(node, "admission"));
        };
        let votes = |admission: &Admission| self.voters.include(&admission.validator);
        if votes(&admission) || (self.voters.follow(node).await && votes(&admission)) {
            Ok(())
        } else {
            Err(lies(node, "admission"))
        }
    }

    /// The receipt, if all of it holds and it is about this bundle.
    async fn receipt(&self, node: &Node, text: &[u8], ticket: &Ticket) -> Result<Final, Miss> {
        let Ok(text) = std::str::from_utf8(text) else {
            return Err(lies(node, "receipt"));
        };
        let mut verified = self.voters.verify(text);
        if verified.is_none() && self.voters.follow(node).await {
            verified = self.voters.verify(text);
        }
        match verified.filter(|receipt| receipt.bundle() == ticket.bundle) {
            Some(receipt) => {
                tracing::info!(
                    bundle = %ticket.bundle, readings = ticket.readings, height = receipt.header().height.0, "finalized"
                );
                Ok(Final {
                    order: ticket.order,
                    receipt,
                    verified_ms: now_ms(),
                    was_new: true,
                })
            }
            None => Err(lies(node, "receipt")),
        }
    }
}

const fn set_aside(ticket: &Ticket, why: Why) -> Landing {
    let order = ticket.order;
    Landing::SetAside { order, why }
}

fn lies(node: &Node, what: &'static str) -> Miss {
    tracing::warn!(node = node.url(), what, "a node's word does not verify");
    metrics::counter!("gateway_uplink_lies_total", "what" => what).increment(1);
    Miss::Node(None)
}

impl From<Reply> for Miss {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Failed(at_least) => Self::Node(at_least),
            Reply::Refused(reason) => Self::Refused(reason),
            Reply::Done(_) | Reply::Waiting | Reply::NotYet => Self::Later,
        }
    }
}

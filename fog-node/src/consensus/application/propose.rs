//! What a leader proposes: the oldest waiting transactions that would take effect, mined to policy P.

use std::collections::HashSet;

use commonware_cryptography::Digested;
use commonware_macros::select;
use commonware_runtime::Clock;
use ledger::{
    block::{BLOCK_BYTES_MAX, Block, Header, Height, VERSION},
    committee::Sitting,
    state::{Refused, State, identifiers},
    transaction::SignedTransaction,
};
use record::canonical::Digest;

use super::Application;
use crate::{
    chain,
    consensus::{
        Payloads,
        codec::{EngineBlock, EngineContext, engine_digest},
    },
    mempool::Queued,
};

/// Room for a header and the lists around the transactions.
const HEADER_BYTES_MAX: usize = 4_096;
/// CBOR framing of one transaction in a block.
const FRAMING_BYTES_MAX: usize = 16;
/// After this part of the idle time, transactions that are ordered and not final get an empty successor.
const NUDGE_PART: u32 = 4;

impl<P: Payloads> Application<P> {
    /// Transactions to propose: returns as soon as there is one, or with none when the idle time is over. What is
    /// `ordered` and, for lack of votes, still not final after a part of it gets its successor then, which finalizes both.
    pub(super) async fn work(
        &self,
        clock: &impl Clock,
        parent: Height,
        ordered: &HashSet<Digest>,
    ) -> Result<Vec<SignedTransaction>, chain::Error> {
        let started = clock.current();
        let deadline = started + self.0.patience.idle;
        let nudge = started + self.0.patience.idle / NUDGE_PART;
        loop {
            let transactions = self.candidates(ordered)?;
            let unsettled = !ordered.is_empty() && self.chain().head().height < parent;
            let now = clock.current();
            // Whether the parent has settled is looked at once more at the nudge.
            let until = if unsettled || now < nudge { nudge } else { deadline };
            let wait = until.duration_since(now).unwrap_or_default();
            if !transactions.is_empty() || wait.is_zero() {
                return Ok(transactions);
            }
            select! {
                () = self.0.rooms.mempool.wait_for_work() => {},
                () = clock.sleep(wait) => {},
            }
        }
    }

    /// The oldest waiting transactions that would take effect now, as many as fit in a block. What can never take effect
    /// any more leaves the mempool.
    fn candidates(&self, ordered: &HashSet<Digest>) -> Result<Vec<SignedTransaction>, chain::Error> {
        let mempool = &self.0.rooms.mempool;
        let state = self.chain().state();
        let count_max = self.0.genesis.policy.transactions_max as usize;
        let mut room_bytes = BLOCK_BYTES_MAX - HEADER_BYTES_MAX;
        let (mut chosen, mut after, mut hopeless) = (Vec::new(), 0, Vec::new());
        let mut taken = ordered.clone();
        'full: while chosen.len() < count_max {
            let picked = mempool.pick(after, count_max - chosen.len());
            if picked.is_empty() {
                break;
            }
            for Queued {
                arrival,
                id,
                transaction,
            } in picked
            {
                after = arrival;
                let identified = identifiers(&transaction);
                if identified.iter().any(|identifier| taken.contains(identifier)) {
                    continue;
                }
                match self.standing(&state, &transaction, &identified)? {
                    Ok(()) => {}
                    Err(refused) if refused.may_pass_later() => continue,
                    // It leaves with its payload, which nothing else names: the erasure lets go of both.
                    Err(Refused::Erased) if transaction.payload().is_some() => continue,
                    Err(_) => {
                        hopeless.push(id);
                        continue;
                    }
                }
                let bytes = transaction.encode().len() + FRAMING_BYTES_MAX;
                if bytes > room_bytes {
                    break 'full;
                }
                room_bytes -= bytes;
                taken.extend(identified);
                chosen.push(transaction);
            }
        }
        mempool.remove(&hopeless);
        Ok(chosen)
    }

    /// Whether a transaction would take effect now.
    fn standing(
        &self,
        state: &State,
        transaction: &SignedTransaction,
        identified: &[Digest],
    ) -> Result<Result<(), Refused>, chain::Error> {
        for identifier in identified {
            if self.chain().took_effect_at(identifier)?.is_some() {
                return Ok(Err(Refused::AlreadyFinal));
            }
        }
        Ok(state.admit(transaction))
    }

    /// Algorithm 3: the next block, mined until policy P holds.
    pub(super) fn build(
        &self,
        context: &EngineContext,
        (parent, sitting): (&Block, &Sitting),
        transactions: Vec<SignedTransaction>,
        now_ms: u64,
    ) -> Digested<EngineBlock> {
        let header = Header {
            version: VERSION,
            network: parent.header.network,
            epoch: context.round.epoch().get(),
            view: context.round.view().get(),
            leader: self.0.me,
            parent_view: context.parent.0.get(),
            height: parent.header.height.next(),
            parent: parent.header.digest(),
            timestamp_ms: now_ms.max(parent.header.timestamp_ms.saturating_add(1)),
            transactions_root: Digest::ZERO,
            policy: parent.header.policy,
            next_validators: sitting.next,
            nonce: 0,
        };
        let mut block = Block { header, transactions };
        block.header.transactions_root = block.transactions_root();
        let (mined, digest) = self.0.genesis.policy.mine(block.header);
        block.header = mined;
        metrics::counter!("fog_consensus_blocks_proposed_total").increment(1);
        Digested::precomputed(EngineBlock::new(block), engine_digest(&digest))
    }
}

//! What the chain says of erased keys: which payloads were committed to them, and which validators have confirmed.

use std::{collections::BTreeSet, sync::Arc};

use cid::Cid;
use ledger::{
    block::{FinalizedBlock, Height},
    erasure::{self, Certificate},
    proof::Inclusion,
    register::Tombstone,
    state::{Outcome, State},
    transaction::{Action, Confirmation},
};
use record::{canonical::Digest, ids::KeyId, signature::PublicKey};

use super::{Chain, Error, Store, light};

/// A commitment to one of the keys that were asked for, of a bundle or of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedTo {
    /// The key.
    pub key: KeyId,
    /// The payload.
    pub cid: Cid,
    /// The block.
    pub height: Height,
    /// Whether it took effect; a refused one left a payload behind all the same.
    pub took_effect: bool,
}

/// A validator's word on an erased key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Who.
    pub validator: PublicKey,
    /// Its word.
    pub confirmation: Confirmation,
    /// The block.
    pub height: Height,
}

/// How far an erasure is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureProgress {
    /// What is left of the key.
    pub tombstone: Tombstone,
    /// Who has confirmed, by key.
    pub confirmed: Vec<Confirmed>,
    /// Who has not, and had a seat when the key was erased, or since.
    pub missing: Vec<PublicKey>,
    /// Whether all who have confirmed name the same payloads.
    pub agree: bool,
}

impl ErasureProgress {
    /// Whether everybody has confirmed the same: what a certificate takes.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.agree
    }
}

impl Chain {
    /// The commitments to any of these keys in the blocks from one height to another, in their order.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn committed_to(
        &self,
        keys: Arc<BTreeSet<KeyId>>,
        (from, to): (Height, Height),
    ) -> Result<Vec<CommittedTo>, Error> {
        self.read(move |store| {
            let mut found = Vec::new();
            for height in (from.0..=to.0).map(Height) {
                found.extend(committed_in(store, height, &keys)?);
            }
            Ok(found)
        })
        .await
    }

    /// Whether a validator has confirmed an erasure. A short lookup on the caller's thread.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_confirmed(&self, key: &KeyId, validator: &PublicKey) -> Result<bool, Error> {
        let word = erasure::confirmation_id(key, validator);
        Ok(self.took_effect_at(&word)?.is_some())
    }

    /// How far the erasure of a key is; `None` if it is not erased.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn erasure(&self, key: &KeyId) -> Result<Option<ErasureProgress>, Error> {
        let (key, state) = (*key, self.state());
        self.read(move |store| Ok(Words::read(store, &state, key)?.map(|words| words.far)))
            .await
    }

    /// The text of an erasure's certificate; `None` until everybody has confirmed the same, and each block can be proven.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn erasure_certificate(&self, key: &KeyId) -> Result<Option<String>, Error> {
        let (key, state) = (*key, self.state());
        self.read(move |store| match Words::read(store, &state, key)? {
            Some(words) if words.far.is_complete() => words.certificate(store),
            _ => Ok(None),
        })
        .await
    }
}

fn committed_in(store: &Store, height: Height, keys: &BTreeSet<KeyId>) -> Result<Vec<CommittedTo>, Error> {
    // Not "nothing was committed there": what is not read is not erased, and a word would be given on it.
    let missing = || Error::Damaged(format!("block {height}, or what it gave, is missing"));
    let block = store.block(height)?.ok_or_else(missing)?;
    let applied = store.applied(height)?.ok_or_else(missing)?;
    if applied.outcomes.len() != block.block.transactions.len() {
        return Err(Error::Damaged(format!("block {height}: what it gave is not whole")));
    }
    let ordered = block.block.transactions.iter().zip(applied.outcomes);
    let found = ordered.filter_map(|(transaction, outcome)| {
        let payload = transaction.payload().filter(|payload| keys.contains(&payload.key))?;
        Some(CommittedTo {
            key: payload.key,
            cid: payload.cid,
            height,
            took_effect: outcome == Outcome::Applied,
        })
    });
    Ok(found.collect())
}

/// Where something stands: its block, and its place in there.
type Placed = (FinalizedBlock, usize);

/// What was read of an erasure, with where it stands: the proofs are made only for a certificate.
struct Words {
    key: KeyId,
    far: ErasureProgress,
    tombstone: Placed,
    confirmations: Vec<Placed>,
}

impl Words {
    fn read(store: &Store, state: &State, key: KeyId) -> Result<Option<Self>, Error> {
        let Some(tombstone) = state.tombstone(&key) else {
            return Ok(None);
        };
        let Some(placed) = found(store, &erasure::tombstone_id(&key))? else {
            // The state is a block ahead of what was read.
            return Ok(None);
        };
        let epochs = placed.0.block.header.epoch..=state.seats().epoch();
        let (mut confirmed, mut missing, mut confirmations) = (Vec::new(), Vec::new(), Vec::new());
        for validator in state.committees().between(epochs) {
            let word = found(store, &erasure::confirmation_id(&key, &validator))?;
            let Some((block, index, confirmation)) = word.and_then(|(block, index)| {
                let Action::ConfirmErasure(confirmation) = block.block.transactions.get(index)?.claims().action else {
                    return None;
                };
                Some((block, index, confirmation))
            }) else {
                missing.push(validator);
                continue;
            };
            confirmed.push(Confirmed {
                validator,
                confirmation,
                height: block.block.header.height,
            });
            confirmations.push((block, index));
        }
        let said = |one: &Confirmed| (one.confirmation.payloads, one.confirmation.cids);
        let agree = confirmed.windows(2).all(|pair| said(&pair[0]) == said(&pair[1]));
        Ok(Some(Self {
            key,
            far: ErasureProgress {
                tombstone: tombstone.clone(),
                confirmed,
                missing,
                agree,
            },
            tombstone: placed,
            confirmations,
        }))
    }

    fn certificate(&self, store: &Store) -> Result<Option<String>, Error> {
        let Some(tombstone) = inclusion(store, &self.tombstone)? else {
            return Ok(None);
        };
        let mut confirmations = Vec::new();
        for placed in &self.confirmations {
            let Some(confirmation) = inclusion(store, placed)? else {
                return Ok(None);
            };
            confirmations.push(confirmation);
        }
        let certificate = Certificate {
            key: self.key,
            tombstone,
            confirmations,
        };
        Ok(Some(certificate.to_json()))
    }
}

/// The block and the place in it where something took effect.
fn found(store: &Store, identifier: &Digest) -> Result<Option<Placed>, Error> {
    let placed = store.placed(identifier)?;
    let Some(placed) = placed.filter(|placed| placed.outcome == Outcome::Applied) else {
        return Ok(None);
    };
    let missing = || Error::Damaged(format!("block {} is missing", placed.height));
    let block = store.block(placed.height)?.ok_or_else(missing)?;
    Ok(Some((block, placed.index as usize)))
}

fn inclusion(store: &Store, (block, index): &Placed) -> Result<Option<Inclusion>, Error> {
    let proof = light::proof_of(store, block)?;
    Ok(proof.and_then(|proof| {
        let descendants = proof.headers.into_iter().skip(1).collect();
        Inclusion::of(&block.block, *index, descendants, proof.finalization)
    }))
}

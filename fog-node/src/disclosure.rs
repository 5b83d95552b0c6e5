//! What a member may learn of the chain without holding it: sealed bundles of keys it was granted, and who may do what.
//!
//! Nothing here is readable: a commitment names a key, a payload is sealed to it. Still nobody is told of bundles that it
//! could not read with its key: without a permit of the state there is no answer.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use cid::Cid;
use ledger::{
    block::Height,
    consent,
    document::Payload,
    light::{CarriedCommitments, CarriedState},
};
use record::{
    bundle::SealedBundle,
    canonical::Digest,
    ids::{KeyId, OrganizationId},
};

use crate::{
    chain::{self, Chain},
    turnstile::{Inside, Turnstile},
    vault::{self, Vault},
};

/// Questions of one organisation that are answered at a time; each reads some hundred blocks.
const IN_FLIGHT_PER_ORGANIZATION_MAX: usize = 32;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ask again later.
    #[error("too many questions of this organization at once")]
    Busy,
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// The vault cannot be read.
    #[error(transparent)]
    Vault(#[from] vault::Error),
}

/// The room. Clones share it.
#[derive(Clone, Debug)]
pub struct Disclosure {
    chain: Chain,
    vault: Vault,
    readers: Arc<Turnstile<OrganizationId>>,
}

impl Disclosure {
    /// Opens the room.
    #[must_use]
    pub fn new(chain: Chain, vault: Vault) -> Self {
        Self {
            chain,
            vault,
            readers: Arc::new(Turnstile::new(IN_FLIGHT_PER_ORGANIZATION_MAX)),
        }
    }

    fn enter(&self, reader: &OrganizationId) -> Result<Inside, Error> {
        self.readers.enter(reader).ok_or(Error::Busy)
    }

    /// The commitments in blocks `from` to `to` to keys that the reader may read; to `keys` alone, if any are named.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn commitments(
        &self,
        reader: &OrganizationId,
        (from, to): (Height, Height),
        keys: BTreeSet<KeyId>,
    ) -> Result<CarriedCommitments, Error> {
        let _inside = self.enter(reader)?;
        let (state, reader) = (self.chain.state(), reader.clone());
        let as_of = state.height();
        let wanted = move |payload: &Payload| {
            (keys.is_empty() || keys.contains(&payload.key))
                && consent::authorize(&state, &reader, &payload.key).is_ok()
        };
        // Of blocks above the state that decides, nothing is said.
        let (through, blocks) = self.chain.included((from, to.min(as_of)), wanted).await?;
        Ok(CarriedCommitments { as_of, through, blocks })
    }

    /// The state with what its digest was made of; `None` before the first block.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn state(&self, reader: &OrganizationId, known: Option<Digest>) -> Result<Option<CarriedState>, Error> {
        let _inside = self.enter(reader)?;
        Ok(self.chain.carried_state(known).await?)
    }

    /// A sealed payload, if it is here and the reader may read what its key opens; "unknown" and "not yours" are one answer.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn payload(&self, reader: &OrganizationId, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let _inside = self.enter(reader)?;
        let Some(payload) = self.vault.local(cid).await? else {
            return Ok(None);
        };
        let key = SealedBundle::decode(&payload).ok().map(|sealed| sealed.key);
        let state = self.chain.state();
        let may = key.is_some_and(|key| consent::authorize(&state, reader, &key).is_ok());
        Ok(may.then_some(payload))
    }
}

//! The committees there were, each proven from the blocks.

use ledger::{
    block::{Header, Height},
    genesis::Genesis,
    handover::{Handover, Handovers},
    proof::Finalization,
};

use super::{Chain, Error, store::Store};

impl Chain {
    /// The committees from the founders on, each with the votes that handed over to it, as far as there are such votes yet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn handovers(&self) -> Result<Handovers, Error> {
        let (genesis, state) = (self.0.genesis.clone(), self.state());
        let founders = Handovers::none(&genesis);
        self.read(move |store| {
            let mut handovers = Vec::new();
            for era in state.seats().eras().iter().skip(1) {
                let Some((header, finalization)) = voted_header(store, &genesis, era.from - 1)? else {
                    break;
                };
                handovers.push(Handover {
                    header,
                    finalization,
                    validators: era.validators.clone(),
                });
            }
            Ok(Handovers { handovers, ..founders })
        })
        .await
    }
}

/// The first header of an epoch that has votes of its own.
fn voted_header(store: &Store, genesis: &Genesis, epoch: u64) -> Result<Option<(Header, Finalization)>, Error> {
    let policy = &genesis.policy;
    let first = epoch
        .checked_sub(1)
        .map_or(Height(1), |before| policy.last_of(before).next());
    for height in (first.0..=policy.last_of(epoch).0).map(Height) {
        let Some(block) = store.block(height)? else {
            return Ok(None);
        };
        if let Some(finalization) = block.finalization {
            return Ok(Some((block.block.header, finalization)));
        }
    }
    Ok(None)
}

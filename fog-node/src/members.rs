//! Members change members: an organisation raises its voice by a signed transaction.

use ledger::{
    committee::{Change, Voice},
    transaction::Action,
};

use crate::decision::{Desk, Error};

/// Raises an organisation's voice for a change, and gives its node's word on the block that it took effect in.
///
/// # Errors
/// [`Error`].
pub async fn raise(desk: &Desk<'_>, change: Change) -> Result<String, Error> {
    let epoch = desk.genesis.policy.epoch_of(desk.height().await?.next());
    desk.decide(Action::Voice(Voice { change, epoch })).await
}

//! The votes that finalize a block: data only, [`crate::proof`] checks them.

use record::signature::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

/// One validator's vote to finalize.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// Who voted.
    pub validator: PublicKey,
    /// Over the vote message of the header.
    pub signature: Signature,
}

/// A quorum's votes on one header, ordered by validator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Finalization {
    /// The votes.
    pub votes: Vec<Vote>,
}

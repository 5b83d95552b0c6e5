//! What the vault never keeps, whoever hands it in.

use cid::Cid;
use record::bundle::PAYLOAD_BYTES_MAX;

/// Why a payload is never kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No payload is that large.
    #[error("a payload of {bytes} bytes is refused, at most {PAYLOAD_BYTES_MAX} are kept")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No large record is that large here.
    #[error(
        "a large record of more than {bytes_max} bytes is refused (vault.object_bytes_max, or what the sender was allowed)"
    )]
    ObjectTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// Its sender went away.
    #[error("the large record broke off before its end; send it again")]
    CutOff,
    /// What the identifier names is not made as this network makes large records.
    #[error("{0} is not the root of a file of 262,144-byte leaves as `ipfs add --cid-version=1 --raw-leaves` makes it")]
    NoFile(Cid),
    /// Its bytes are kept already as a record of another kind, and a row of the store knows one of them.
    #[error(
        "the bytes of {0} are kept here under another codec already: as a payload, or as the root of a larger record"
    )]
    Alias(Cid),
    /// Its key was erased on the chain; what was sealed to it is gone for good.
    #[error(
        "payload {0} is erased: the custodian of its key has said so on the chain, and nothing of it is kept again"
    )]
    Erased(Cid),
}

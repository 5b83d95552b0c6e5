//! Why a transaction has no effect; a refusal is an outcome like any other, recorded and equal on every node.

use serde::{Deserialize, Serialize};

use crate::committee::Unheard;

/// Why a transaction has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// Meant for another network.
    #[error("meant for another network")]
    WrongNetwork,
    /// The author is not enrolled, or may not do this.
    #[error("the author is not enrolled, or may not do this")]
    NotAllowed,
    /// The signature is not the author's.
    #[error("the signature is not the author's")]
    WrongSignature,
    /// It, or its bundle, is on the chain already.
    #[error("on the chain already")]
    AlreadyFinal,
    /// It names a key, gateway or member that the chain does not know.
    #[error("it names a key, gateway or member that the chain does not know")]
    UnknownName,
    /// The name is taken by somebody else.
    #[error("the name is taken")]
    NameTaken,
    /// A later word took effect: what was held back cannot undo it.
    #[error(
        "a later decision took effect: a grant needs a higher sequence, a rotation the device's present key and a new one"
    )]
    Stale,
    /// A change of the members that cannot be made as things stand.
    #[error(
        "the change names what is not there or is there already, or is decided; a validator leaves before its member"
    )]
    Impossible,
    /// A voice of another epoch: it counts in the one it names and the next.
    #[error("the voice is of another epoch; raise it again")]
    OtherEpoch,
    /// What it names was revoked; that is for good.
    #[error("what it names was revoked, which is for good: enrol it under another name")]
    Revoked,
    /// The key it names was erased; that is for good.
    #[error("the key it names was erased, which is for good: seal to another key of the subject, if there is one")]
    Erased,
    /// No proof that the new key's private half is there.
    #[error("the proof of possession is not by the new key, for this network, gateway and device")]
    NotPossessed,
    /// Too many open changes of an organisation, or keys of a device.
    #[error(
        "too many: wait until changes that your organisation asked for are decided or have lapsed; a device that has used \
         up its keys is enrolled under another name"
    )]
    TooMany,
}

impl From<Unheard> for Refused {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NoElector => Self::NotAllowed,
            Unheard::Impossible => Self::Impossible,
            Unheard::Stale => Self::OtherEpoch,
            Unheard::TooMany => Self::TooMany,
        }
    }
}

impl Refused {
    /// Whether it was right a little earlier, perhaps: a name that was taken, a decision or a voice that was overtaken. Such a
    /// transaction may be ordered; it is refused when it is executed.
    #[must_use]
    pub const fn depends_on_when(self) -> bool {
        matches!(
            self,
            Self::NameTaken
                | Self::AlreadyFinal
                | Self::Stale
                | Self::Impossible
                | Self::OtherEpoch
                | Self::TooMany
                | Self::Revoked
                | Self::Erased
        )
    }

    /// Whether it may become right when the chain has moved on.
    #[must_use]
    pub const fn may_pass_later(self) -> bool {
        matches!(self, Self::NotAllowed | Self::UnknownName)
    }
}

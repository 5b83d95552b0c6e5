//! The broker's answers in the words of MQTT, and what the library's own words mean.

use record::reading::Reason as Cause;
use rmqtt::{
    codec::{error::DecodeError, v5::PublishAckReason},
    net::MqttError,
    types::{PublishAclResult, PublishResult, Reason},
};

/// What the library says of a packet above the limit, where it does not keep the error's type.
const OVERSIZE: &str = "Max size exceeded: size=";

/// The reason code for a message that is in quarantine. Each is an error that sending again does not cure.
pub(super) const fn code(reason: Cause) -> PublishAckReason {
    match reason {
        Cause::UnknownDevice
        | Cause::WrongSignature
        | Cause::NotOpened
        | Cause::Revoked
        | Cause::Unassigned
        | Cause::WrongTopic => PublishAckReason::NotAuthorized,
        Cause::TooLarge
        | Cause::Malformed
        | Cause::Unsealed
        | Cause::UnknownCode
        | Cause::WrongUnit
        | Cause::Implausible
        | Cause::Equivocation => PublishAckReason::PayloadFormatInvalid,
    }
}

/// An answer with its reason.
pub(super) fn answer(code: PublishAckReason, why: String, disconnect: bool) -> PublishAclResult {
    PublishAclResult(PublishResult::reason_code(code, Some(why.into()), disconnect))
}

/// The size of the packet, if its size is why the connection ended.
pub(super) fn oversize(reason: &Reason) -> Option<u64> {
    match reason {
        Reason::MqttError(MqttError::Decode(DecodeError::MaxSizeExceeded { size, .. })) => Some(u64::from(*size)),
        Reason::Error(text) => {
            let (_, rest) = text.split_once(OVERSIZE)?;
            rest.split(',').next()?.parse().ok()
        }
        Reason::Reasons(all) => all.iter().find_map(oversize),
        _ => None,
    }
}

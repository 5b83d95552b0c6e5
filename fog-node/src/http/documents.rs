//! `/api/v1/documents`: a node tells another one of a document that it wants to commit to; and how documents fail.

use std::sync::Arc;

use http::StatusCode;
use ledger::transaction::{SignedTransaction, TRANSACTION_BYTES_MAX};
use record::{canonical::MEDIA_TYPE, document::SealError};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};
use crate::documents::{ADDRESS, Error};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    const BYTES_MAX: u32 = TRANSACTION_BYTES_MAX as u32;
    vec![
        Route::post(ADDRESS, BYTES_MAX, |context, request| Box::pin(keep(context, request)))
            .from(|context, peer, headers| context.caller_of(peer, headers)?.validator().map(|_| ())),
    ]
}

/// 200 and this node's signed word only when all of the document is durable here: the sender counts on it.
async fn keep(context: Arc<Context>, request: Request) -> Answered {
    context.caller(&request)?.validator()?;
    request.expect_media_type(MEDIA_TYPE)?;
    let transaction =
        SignedTransaction::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    let admission = context.documents.keep(&transaction).await?;
    Ok(answer::json(StatusCode::OK, &admission))
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let sentence = error.to_string();
        match error {
            Error::NoDesk => Self::not_implemented(sentence),
            Error::NoPatient => Self::not_found(sentence),
            Error::NoKey => Self::conflict(sentence),
            Error::TooLarge { .. } => Self::too_large(sentence),
            Error::Busy => Self::too_many(format!("{sentence}; send yours again")),
            Error::Refused(refused) if refused.may_pass_later() => Self::conflict(sentence),
            Error::Refused(_) | Error::Mismatch(_) => Self::unprocessable(sentence),
            Error::TooFew { .. } => Self::of_ours(&error, Self::unavailable(sentence)),
            Error::Contradiction(_) => {
                let told = "this node's keys and store contradict the chain; ask another node and tell its operator";
                Self::of_ours(&error, Self::internal(told))
            }
            Error::Seal(SealError::TooLarge { .. }) => Self::too_large(sentence),
            Error::Seal(SealError::OtherLength { .. }) => Self::invalid(sentence),
            Error::Seal(SealError::Crypto) => Self::of_ours(&error, Self::internal("the document could not be sealed")),
            Error::Vault(vault) => vault.into(),
            Error::Chain(chain) => chain.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::state::Refused;

    #[test]
    fn who_hands_in_a_document_can_tell_later_from_never() {
        let status = |error: Error| Fault::from(error).status().as_u16();
        assert_eq!(status(Error::Busy), 429);
        assert_eq!(status(Error::TooFew { held: 1, needed: 3 }), 503);
        assert_eq!(status(Error::Refused(Refused::UnknownName)), 409);
        assert_eq!(status(Error::NoKey), 409);
        assert_eq!(status(Error::Refused(Refused::Revoked)), 422);
        assert_eq!(status(Error::TooLarge { bytes_max: 1 }), 413);
        assert_eq!(status(Error::Seal(SealError::OtherLength { bytes: 1 })), 400);
        assert_eq!(status(Error::NoPatient), 404);
    }
}

//! Every way a request can fail, as a status and an OperationOutcome with a sentence that says what to change.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use record::fhir;

use crate::{chain, disclosure, index, intake, proofs, query, vault};

use super::answer::FHIR_JSON;

/// Seconds after which a caller may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    status: StatusCode,
    code: &'static str,
    diagnostics: String,
    header: Option<(HeaderName, HeaderValue)>,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal;)*) => {
        impl Fault {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(diagnostics: impl Into<String>) -> Self {
                Self { status: StatusCode::$status, code: $code, diagnostics: diagnostics.into(), header: None }
            })*
        }
    };
}

faults! {
    /// 400: the request cannot be understood.
    invalid = BAD_REQUEST, "invalid";
    /// 403: known, but not allowed.
    forbidden = FORBIDDEN, "forbidden";
    /// 404: not here, or not for this caller; nobody can tell which.
    not_found = NOT_FOUND, "not-found";
    /// 406: no representation the caller accepts.
    not_acceptable = NOT_ACCEPTABLE, "not-supported";
    /// 409: may become right when the chain has moved on.
    conflict = CONFLICT, "conflict";
    /// 410: it was here, and is gone for good.
    gone = GONE, "deleted";
    /// 411: how long is the body?
    length_required = LENGTH_REQUIRED, "required";
    /// 412: what the caller asks for holds under a condition that does not.
    precondition_failed = PRECONDITION_FAILED, "not-found";
    /// 413: the body is too large.
    too_large = PAYLOAD_TOO_LARGE, "too-long";
    /// 415: a body of a type we do not read.
    unsupported_media = UNSUPPORTED_MEDIA_TYPE, "not-supported";
    /// 422: understood, and wrong for good.
    unprocessable = UNPROCESSABLE_ENTITY, "business-rule";
    /// 501: a fog node can, this program cannot.
    not_implemented = NOT_IMPLEMENTED, "not-supported";
    /// 500: our own contradiction.
    internal = INTERNAL_SERVER_ERROR, "exception";
}

impl Fault {
    /// 401: who are you?
    #[must_use]
    pub fn unauthenticated(diagnostics: impl Into<String>) -> Self {
        let challenge = (
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"vitalfog\""),
        );
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: "login",
            diagnostics: diagnostics.into(),
            header: Some(challenge),
        }
    }

    /// 405: the path is right, the method is not.
    #[must_use]
    pub fn method_not_allowed(allow: &str) -> Self {
        let diagnostics = format!("this address answers {allow} only");
        let allow = HeaderValue::from_str(allow).unwrap_or_else(|_| HeaderValue::from_static("GET"));
        let header = Some((header::ALLOW, allow));
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "not-supported",
            diagnostics,
            header,
        }
    }

    /// 416: there are no such bytes in what has this length.
    #[must_use]
    pub fn unsatisfiable(length: u64) -> Self {
        let said = HeaderValue::try_from(format!("bytes */{length}")).expect("digits and signs");
        Self {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            code: "invalid",
            diagnostics: format!("Range: these are {length} bytes"),
            header: Some((header::CONTENT_RANGE, said)),
        }
    }

    /// 408: the caller was too slow.
    #[must_use]
    pub fn too_slow(diagnostics: impl Into<String>) -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            code: "timeout",
            diagnostics: diagnostics.into(),
            header: None,
        }
    }

    /// 429: this caller does too much at once.
    #[must_use]
    pub fn too_many(diagnostics: impl Into<String>) -> Self {
        let header = Some((header::RETRY_AFTER, RETRY_AFTER_SECONDS));
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "throttled",
            diagnostics: diagnostics.into(),
            header,
        }
    }

    /// 503: this node's index is so many blocks behind its chain that an answer would lack what is final.
    #[must_use]
    pub fn lagging(blocks: u64) -> Self {
        Self::unavailable(format!(
            "this node's index is {blocks} blocks behind its chain and catches up; try again, or ask another node"
        ))
    }

    /// 503: this node cannot now; later, or another node can.
    #[must_use]
    pub fn unavailable(diagnostics: impl Into<String>) -> Self {
        let header = Some((header::RETRY_AFTER, RETRY_AFTER_SECONDS));
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "transient",
            diagnostics: diagnostics.into(),
            header,
        }
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The OperationOutcome.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let body = fhir::operation_outcome("error", self.code, &self.diagnostics).to_string();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, FHIR_JSON);
        response.headers_mut().extend(self.header);
        response
    }

    /// Our own failure: logged here, once, with its cause; the caller learns only what to do.
    pub(super) fn of_ours(error: &dyn std::error::Error, answer: Self) -> Self {
        tracing::warn!(%error, cause = cause(error), "a request failed here");
        answer
    }
}

/// Nothing is served that the chain does not say.
const MENDED: &str =
    "rows of this node's index are not what it wrote; they are mended from the chain; try again, or ask another node";
const NO_INDEX: &str = "this node's index does not answer; the chain goes on; try again, or ask another node";
const ELSEWHERE: &str = "this node cannot answer now; try again, or ask another node";

impl From<intake::Error> for Fault {
    fn from(error: intake::Error) -> Self {
        let sentence = error.to_string();
        match error {
            intake::Error::NotTheAuthor => Self::forbidden(sentence),
            intake::Error::Refused(_) => Self::unprocessable(format!("the transaction is refused: {sentence}")),
            intake::Error::Early(_) => Self::conflict(format!("the transaction is refused for now: {sentence}")),
            // 503 and not 429: a gateway takes a 4xx as final and would give the bundle up.
            intake::Error::Busy(_) => Self::unavailable(format!("{sentence}; send it again later")),
            intake::Error::Vault(vault) => vault.into(),
            intake::Error::Chain(chain) => chain.into(),
        }
    }
}

impl From<query::Error> for Fault {
    fn from(error: query::Error) -> Self {
        match error {
            query::Error::Busy => Self::too_many(format!("{error}; wait for an answer before you ask again")),
            query::Error::Index(index::Error::TooBroad(_)) => Self::invalid(cause(&error)),
            query::Error::Vault(vault) => vault.into(),
            query::Error::Index(index::Error::Altered(_)) | query::Error::Contradiction { .. } => {
                Self::of_ours(&error, Self::unavailable(MENDED))
            }
            query::Error::Index(_) => Self::of_ours(&error, Self::unavailable(NO_INDEX)),
        }
    }
}

impl From<proofs::Error> for Fault {
    fn from(error: proofs::Error) -> Self {
        Self::of_ours(&error, Self::unavailable(ELSEWHERE))
    }
}

impl From<disclosure::Error> for Fault {
    fn from(error: disclosure::Error) -> Self {
        match error {
            disclosure::Error::Busy => Self::too_many(format!("{error}; wait for an answer before you ask again")),
            disclosure::Error::Chain(chain) => chain.into(),
            disclosure::Error::Vault(vault) => vault.into(),
        }
    }
}

impl From<chain::Error> for Fault {
    fn from(error: chain::Error) -> Self {
        match error {
            // One rotten row: this answer is not to be had here. Whoever asks must not be able to end the process.
            ref damage if damage.is_damage() => Self::of_ours(&error, Self::unavailable(ELSEWHERE)),
            _ => stop(&error),
        }
    }
}

impl From<vault::Error> for Fault {
    fn from(error: vault::Error) -> Self {
        match error {
            vault::Error::Refused(vault::Refusal::TooLarge { .. } | vault::Refusal::ObjectTooLarge { .. }) => {
                Self::too_large(error.to_string())
            }
            vault::Error::Refused(vault::Refusal::CutOff) => Self::invalid(error.to_string()),
            vault::Error::Refused(vault::Refusal::NoFile(_) | vault::Refusal::Alias(_)) => {
                Self::unprocessable(error.to_string())
            }
            vault::Error::Refused(vault::Refusal::Erased(_)) => Self::gone(error.to_string()),
            vault::Error::Storage(_) => stop(&error),
            // The room has said so once; a full disk refuses every bundle that comes.
            vault::Error::Unavailable(vault::Trouble::DiskFull) => Self::unavailable(error.to_string()),
            // The vault has said it once; a line for every request would hide the others.
            vault::Error::Unavailable(vault::Trouble::Daemon(_)) => Self::unavailable(ELSEWHERE),
            _ => Self::of_ours(&error, Self::unavailable(ELSEWHERE)),
        }
    }
}

/// A disk that does not hold what was agreed: the node stops rather than answer from it.
fn stop(error: &dyn std::error::Error) -> ! {
    tracing::error!(%error, cause = cause(error), "the storage of this node failed");
    panic!("the storage of this node failed");
}

/// What lies under an error.
fn cause(error: &dyn std::error::Error) -> String {
    let causes: Vec<_> = std::iter::successors(error.source(), |e| e.source())
        .map(ToString::to_string)
        .collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::state::Refused;

    fn outcome(fault: Fault) -> (u16, serde_json::Value, http::HeaderMap) {
        let response = fault.into_response();
        let body = serde_json::from_slice(response.body()).expect("JSON");
        (response.status().as_u16(), body, response.headers().clone())
    }

    #[test]
    fn a_fault_is_an_operation_outcome_in_fhir_json() {
        let (status, body, headers) = outcome(Fault::not_found("no such patient is visible to you"));
        assert_eq!(status, 404);
        assert_eq!(body["resourceType"], "OperationOutcome");
        assert_eq!(body["issue"][0]["code"], "not-found");
        assert_eq!(headers[header::CONTENT_TYPE], "application/fhir+json; charset=utf-8");
    }

    #[test]
    fn the_caller_learns_how_to_go_on() {
        assert_eq!(
            outcome(Fault::unauthenticated("x")).2[header::WWW_AUTHENTICATE],
            "Bearer realm=\"vitalfog\""
        );
        assert_eq!(outcome(Fault::unavailable("x")).2[header::RETRY_AFTER], "1");
        assert_eq!(outcome(Fault::too_many("x")).2[header::RETRY_AFTER], "1");
        assert_eq!(
            outcome(Fault::method_not_allowed("GET, HEAD")).2[header::ALLOW],
            "GET, HEAD"
        );
    }

    #[test]
    fn a_gateway_can_tell_later_from_never() {
        let status = |error: intake::Error| Fault::from(error).status().as_u16();
        assert_eq!(status(intake::Error::Early(Refused::UnknownName)), 409);
        assert_eq!(status(intake::Error::Refused(Refused::WrongSignature)), 422);
        assert_eq!(status(intake::Error::NotTheAuthor), 403);
        assert_eq!(status(intake::Error::Busy("full")), 503);
    }
}

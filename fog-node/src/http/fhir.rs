//! `/fhir/..`: the hospital's door. FHIR R4, read and search, each answer from what the caller's organisation may see.

pub mod binary;
pub mod date;
pub mod metadata;
pub mod observation;
pub mod patient;
pub mod search;

use http::{HeaderMap, header};
use ledger::{block::Height, genesis::Genesis};

use super::{
    caller::{Caller, Peer},
    fault::Fault,
    parameters::Parameters,
    route::{Request, Route},
};
use crate::query::Query;

/// What stands behind this door: a fog node, or an observer.
pub trait Server: Send + Sync + 'static {
    /// Who asks, by the state of this moment.
    ///
    /// # Errors
    /// 401 for a bad token.
    fn caller_of(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Fault>;

    /// The only way to records.
    fn query(&self) -> &Query;

    /// What addresses in answers begin with.
    fn fhir_base(&self) -> &str;

    /// The network's founding document.
    fn genesis(&self) -> &Genesis;

    /// Blocks that an index which is projected so far lags behind, and how many it may.
    fn lag_blocks(&self, projected: Height) -> (u64, u64);

    /// Refuses to answer from an index that lags too far behind: what is final would be missing, and nobody could tell.
    ///
    /// # Errors
    /// 503, and by how many blocks.
    fn is_current(&self, projected: Option<Height>) -> Result<(), Fault> {
        match projected.map(|projected| self.lag_blocks(projected)) {
            Some((lag, bound)) if lag > bound => Err(Fault::lagging(lag)),
            _ => Ok(()),
        }
    }

    /// What only this kind of server serves.
    #[must_use]
    fn own_routes() -> Vec<Route<Self>>
    where
        Self: Sized,
    {
        Vec::new()
    }

    /// Who asks, by the state of this moment.
    ///
    /// # Errors
    /// 401 for a bad token.
    fn caller(&self, request: &Request) -> Result<Caller, Fault> {
        self.caller_of(&request.peer, &request.headers)
    }
}

/// Whoever may send a form: the bearer of a token.
fn is_client<S: Server>(server: &S, peer: &Peer, headers: &HeaderMap) -> Result<(), Fault> {
    server.caller_of(peer, headers)?.client().map(|_| ())
}

/// Everything that is served here; the CapabilityStatement is made from this table.
#[must_use]
pub fn routes<S: Server>() -> Vec<Route<S>> {
    let mut routes = metadata::routes();
    routes.extend(observation::routes());
    routes.extend(patient::routes());
    routes.extend(S::own_routes());
    routes
}

/// Refuses a caller who accepts no FHIR JSON; `_format` goes before Accept, as FHIR has it.
///
/// # Errors
/// 406.
pub fn expect_json(request: &Request) -> Result<(), Fault> {
    let refuse = || Fault::not_acceptable("only JSON is served: ask for application/fhir+json");
    if let Some(format) = request.parameters.last("_format") {
        // A plus sign that was not escaped arrives as a space.
        let format = format.replace(' ', "+");
        let format = format.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let json = ["json", "application/json", "application/fhir+json", "text/json"];
        return if json.contains(&format.as_str()) {
            Ok(())
        } else {
            Err(refuse())
        };
    }
    let any = ["application/fhir+json", "application/json", "text/json"]
        .iter()
        .any(|json| request.accepts(json));
    if any || !request.headers.contains_key(header::ACCEPT) {
        Ok(())
    } else {
        Err(refuse())
    }
}

/// Whether the caller wants parameters that are not understood to be refused (`Prefer: handling=strict`).
#[must_use]
pub fn is_strict(headers: &HeaderMap) -> bool {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    preferences
        .flat_map(|value| value.split([',', ';']))
        .any(|one| one.trim().eq_ignore_ascii_case("handling=strict"))
}

/// The parameters of a search: those of the query and, for `POST .. /_search`, those of the form.
///
/// # Errors
/// 415 for a body that is no form.
pub fn parameters(request: &Request) -> Result<Parameters, Fault> {
    if request.body.is_empty() {
        return Ok(request.parameters.clone());
    }
    request.expect_media_type("application/x-www-form-urlencoded")?;
    let form = std::str::from_utf8(&request.body).map_err(|_| Fault::invalid("the form is not UTF-8"))?;
    Ok(request.parameters.clone().chain(Parameters::parse(form)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{caller::Peer, parameters::Parameters};

    fn request(accept: Option<&str>, query: &str) -> Request {
        let mut headers = HeaderMap::new();
        headers.extend(accept.map(|accept| (header::ACCEPT, accept.parse().expect("a header"))));
        let peer = Peer {
            address: ([127, 0, 0, 1], 1).into(),
            tls: None,
        };
        Request {
            places: vec![],
            parameters: Parameters::parse(query),
            headers,
            body: bytes::Bytes::new(),
            peer,
        }
    }

    #[test]
    fn json_is_served_to_whoever_accepts_it() {
        for accept in [
            None,
            Some("*/*"),
            Some("application/fhir+json"),
            Some("text/html, application/json;q=0.9"),
            Some("application/*"),
        ] {
            assert!(expect_json(&request(accept, "")).is_ok(), "{accept:?}");
        }
        for accept in ["application/fhir+xml", "text/html", "application/json;q=0"] {
            assert_eq!(expect_json(&request(Some(accept), "")).expect_err(accept).status(), 406);
        }
        assert!(expect_json(&request(Some("text/html"), "_format=application/fhir+json")).is_ok());
        assert_eq!(
            expect_json(&request(None, "_format=xml")).expect_err("xml").status(),
            406
        );
    }

    #[test]
    fn strict_handling_is_asked_for_by_its_name() {
        let mut headers = HeaderMap::new();
        assert!(!is_strict(&headers));
        headers.insert("prefer", "return=minimal; handling=strict".parse().expect("a header"));
        assert!(is_strict(&headers));
        headers.insert("prefer", "handling=lenient".parse().expect("a header"));
        assert!(!is_strict(&headers));
    }
}

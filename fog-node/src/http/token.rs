//! Bearer tokens: JWTs that an organisation signed with its key, verifiable on any node from the chain's state alone.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, dangerous, errors::ErrorKind};
use ledger::state::State;
use record::ids::OrganizationId;
use serde::Deserialize;

use super::fault::Fault;

/// A longer token is not looked at.
const TOKEN_BYTES_MAX: usize = 8_192;
/// How far the issuer's clock may be from ours, in seconds.
const LEEWAY_SECONDS: u64 = 30;
/// A token lives at most this long after it was issued, in seconds: one that was lost does not open doors for ever.
const LIFETIME_SECONDS_MAX: u64 = 31 * 24 * 3_600;
/// The type an access token says it is (RFC 9068).
const TOKEN_TYPE: &str = "at+jwt";

/// What a caller wants to do with resources of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read one by its id.
    Read,
    /// Search.
    Search,
    /// Hand one in.
    Create,
}

/// The rights a token carries: SMART system scopes, version 1 (`.read`, `.write`) and 2 (`.rs`, `.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    /// `None` is every type.
    resource: Option<String>,
    read: bool,
    search: bool,
    create: bool,
}

impl Scopes {
    /// Reads a scope list; what we do not understand (launch scopes, finer search conditions) grants nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.split_ascii_whitespace().filter_map(Scope::parse).collect())
    }

    /// Whether they include a right on resources of a type.
    #[must_use]
    pub fn allow(&self, resource: &str, right: Right) -> bool {
        self.0.iter().any(|scope| {
            scope.resource.as_deref().is_none_or(|of| of == resource)
                && match right {
                    Right::Read => scope.read,
                    Right::Search => scope.search,
                    Right::Create => scope.create,
                }
        })
    }
}

impl Scope {
    fn parse(text: &str) -> Option<Self> {
        let (resource, verbs) = text.strip_prefix("system/")?.split_once('.')?;
        let (read, search, create) = match verbs {
            "read" => (true, true, false),
            "write" => (false, false, true),
            "*" => (true, true, true),
            // Version 2: some of "cruds", in that order.
            verbs => {
                let places: Option<Vec<_>> = verbs.chars().map(|verb| "cruds".find(verb)).collect();
                places.filter(|p| !p.is_empty() && p.is_sorted_by(|a, b| a < b))?;
                (verbs.contains('r'), verbs.contains('s'), verbs.contains('c'))
            }
        };
        let resource = (resource != "*").then(|| resource.to_owned());
        Some(Self {
            resource,
            read,
            search,
            create,
        })
    }
}

/// A verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The organisation that signed it, and for which its bearer reads.
    pub organization: OrganizationId,
    /// Which of its programs.
    pub client_id: String,
    /// What it may do.
    pub scopes: Scopes,
}

#[derive(Deserialize)]
struct Claims {
    iss: OrganizationId,
    sub: String,
    scope: String,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Issuer {
    iss: OrganizationId,
}

/// Who a token says that it is of; nothing about it is verified.
#[must_use]
pub fn claimed_issuer(token: &str) -> Option<OrganizationId> {
    let claims: Result<Issuer, _> = dangerous::insecure_decode_claims(token);
    claims.ok().map(|issuer| issuer.iss)
}

/// Verifies a token: signed by a member with the key the chain knows, meant for this network, not expired.
///
/// # Errors
/// 401 with what is wrong.
pub fn verify(token: &str, state: &State) -> Result<Client, Fault> {
    let refuse = |why: &str| Fault::unauthenticated(format!("the access token is refused: {why}"));
    if token.len() > TOKEN_BYTES_MAX {
        return Err(refuse("it is too long"));
    }
    // The issuer is read before it is believed, only to find the key that has to have signed it.
    let issuer = claimed_issuer(token).ok_or_else(|| refuse("not a JWT whose iss is an organization id"))?;
    let organization = state
        .organization(&issuer)
        .ok_or_else(|| refuse("its issuer is no member of this network"))?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.set_audience(&[state.network.to_string()]);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    let key = DecodingKey::from_ed_der(organization.key.as_bytes());
    let verified =
        jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|error| refuse(sentence(error.kind())))?;
    if !verified
        .header
        .typ
        .is_some_and(|typ| typ.eq_ignore_ascii_case(TOKEN_TYPE))
    {
        return Err(refuse("its header must say typ \"at+jwt\""));
    }
    if verified.header.crit.is_some() {
        return Err(refuse(
            "its header names critical extensions, and none is known here (RFC 7515, 4.1.11)",
        ));
    }
    let Claims {
        iss,
        sub,
        scope,
        iat,
        exp,
    } = verified.claims;
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    if iat > now + LEEWAY_SECONDS {
        return Err(refuse("its iat is in the future"));
    }
    if exp.saturating_sub(iat) > LIFETIME_SECONDS_MAX {
        return Err(refuse(
            "it lives longer than 31 days; ask its issuer for one that does not",
        ));
    }
    Ok(Client {
        organization: iss,
        client_id: sub,
        scopes: Scopes::parse(&scope),
    })
}

const fn sentence(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired; ask its issuer for a new one",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidAudience => "its aud must be this network's id",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "its alg must be EdDSA",
        ErrorKind::InvalidSignature => "its issuer's key did not sign it",
        ErrorKind::MissingRequiredClaim(_) => "it needs the claims iss, sub, aud, iat, exp and scope",
        _ => "it is not a well-formed access token with the claims iss, sub, aud, iat, exp and scope",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header};
    use ledger::{
        genesis::{Genesis, Organization, Role, Validator},
        policy::ValidityPolicy,
    };
    use record::{canonical::Digest, signature::SigningKey};
    use serde_json::json;

    fn founded(key: &SigningKey) -> State {
        let id: OrganizationId = "hospital-a".parse().expect("good");
        State::genesis(&Genesis {
            name: "test".to_owned(),
            founded_ms: 1,
            organizations: vec![Organization {
                id: id.clone(),
                name: "A".to_owned(),
                role: Role::Provider,
                key: key.public(),
            }],
            validators: vec![Validator {
                organization: id,
                key: SigningKey::random().public(),
                tls: Digest::ZERO,
                address: None,
            }],
            policy: ValidityPolicy::default(),
        })
    }

    fn token(key: &SigningKey, change: impl Fn(&mut Header, &mut serde_json::Value), state: &State) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({"iss": "hospital-a", "sub": "ward", "aud": state.network.to_string(),
            "scope": "system/Observation.rs", "iat": now, "exp": now + 300, "jti": "1"});
        let mut header = Header {
            typ: Some(TOKEN_TYPE.to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        change(&mut header, &mut claims);
        let key = EncodingKey::from_ed_pem(key.to_pem().expect("encodes").as_bytes()).expect("a key");
        jsonwebtoken::encode(&header, &claims, &key).expect("signs")
    }

    #[test]
    fn a_token_of_a_member_is_believed() {
        let key = SigningKey::random();
        let state = founded(&key);
        let client = verify(&token(&key, |_, _| {}, &state), &state).expect("good");
        assert_eq!(
            (client.organization.as_str(), client.client_id.as_str()),
            ("hospital-a", "ward")
        );
        assert!(client.scopes.allow("Observation", Right::Search));
    }

    #[test]
    fn each_defect_is_refused_with_its_sentence() {
        let (key, other) = (SigningKey::random(), SigningKey::random());
        let state = founded(&key);
        let now = jiff::Timestamp::now().as_second();
        let why = |token: String| {
            let response = verify(&token, &state).expect_err("refused").into_response();
            String::from_utf8(response.body().to_vec()).expect("text")
        };
        assert!(why(token(&other, |_, _| {}, &state)).contains("did not sign"));
        assert!(why(token(&key, |_, c| c["exp"] = json!(now - 100), &state)).contains("expired"));
        assert!(why(token(&key, |_, c| c["aud"] = json!("elsewhere"), &state)).contains("aud"));
        assert!(why(token(&key, |_, c| c["iss"] = json!("stranger"), &state)).contains("no member"));
        assert!(
            why(token(
                &key,
                |_, c| drop(c.as_object_mut().expect("map").remove("exp")),
                &state
            ))
            .contains("claims")
        );
        assert!(why(token(&key, |h, _| h.typ = Some("JWT".to_owned()), &state)).contains("at+jwt"));
        assert!(why(token(&key, |h, _| h.crit = Some(vec!["x".to_owned()]), &state)).contains("critical"));
        assert!(why(token(&key, |_, c| c["iat"] = json!(now + 9_999), &state)).contains("future"));
        assert!(why(token(&key, |_, c| c["exp"] = json!(now + 32 * 24 * 3_600), &state)).contains("31 days"));
        assert!(why("a.b.c".to_owned()).contains("not a JWT"));
    }

    #[test]
    fn a_token_signed_with_the_public_key_as_a_secret_is_refused() {
        let key = SigningKey::random();
        let state = founded(&key);
        let now = jiff::Timestamp::now().as_second();
        let claims =
            json!({"iss": "hospital-a", "sub": "x", "aud": state.network.to_string(), "scope": "", "exp": now + 9});
        let secret = EncodingKey::from_secret(key.public().as_bytes());
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).expect("signs");
        assert!(verify(&forged, &state).is_err());
    }

    #[test]
    fn who_may_read_may_not_hand_in_unless_it_is_said() {
        let may = |text: &str| Scopes::parse(text).allow("Binary", Right::Create);
        for yes in [
            "system/Binary.c",
            "system/Binary.cr",
            "system/Binary.write",
            "system/*.*",
            "system/Binary.cruds",
        ] {
            assert!(may(yes), "{yes}");
        }
        for no in [
            "system/Binary.rs",
            "system/Binary.read",
            "system/Binary.rc",
            "system/Patient.c",
            "user/Binary.c",
        ] {
            assert!(!may(no), "{no}");
        }
        assert!(!Scopes::parse("system/Binary.write").allow("Binary", Right::Read));
    }

    #[test]
    fn scopes_of_both_versions_are_read_and_strange_ones_grant_nothing() {
        let both = |text: &str| {
            let scopes = Scopes::parse(text);
            (
                scopes.allow("Observation", Right::Read),
                scopes.allow("Observation", Right::Search),
            )
        };
        assert_eq!(both("system/Observation.rs system/Patient.rs"), (true, true));
        assert_eq!(both("system/Observation.read"), (true, true));
        assert_eq!(both("system/*.*"), (true, true));
        assert_eq!(both("system/Observation.s"), (false, true));
        assert_eq!(both("system/*.cruds"), (true, true));
        assert_eq!(both("system/Patient.rs"), (false, false));
        assert_eq!(both("system/Observation.write"), (false, false));
        assert_eq!(both("system/Observation.sr"), (false, false));
        assert_eq!(both("system/Observation.rs?category=laboratory"), (false, false));
        assert_eq!(both("user/Observation.rs patient/*.read openid"), (false, false));
        assert_eq!(both(""), (false, false));
    }
}

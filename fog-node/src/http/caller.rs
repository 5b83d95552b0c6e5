//! Who asks: a client with an organisation's token, an enrolled gateway, a validator, a stranger, or nobody in particular.

use std::net::SocketAddr;

use http::{HeaderMap, header};
use ledger::state::State;
use record::{
    canonical::{Digest, Domain},
    ids::{GatewayId, OrganizationId},
    signature::PublicKey,
};
use rustls::{pki_types::CertificateDer, server::ParsedCertificate};

use super::{
    fault::Fault,
    token::{self, Client, Right},
};

/// The other end of a connection, as TLS knows it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// The digest of its certificate's public key, if it showed a certificate of the network's CA.
    pub tls: Option<Digest>,
}

impl Peer {
    /// The identity in a certificate that the TLS stack has verified: its public key, pinned on the chain.
    #[must_use]
    pub fn identity(certificate: &CertificateDer<'_>) -> Option<Digest> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Digest::of(
            Domain::TLS_KEY,
            &[parsed.subject_public_key_info().as_ref()],
        ))
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Neither token nor certificate.
    Anonymous,
    /// A certificate of the network's CA, whose key the chain does not know (yet).
    Stranger,
    /// The bearer of an organisation's token.
    Client(Client),
    /// An enrolled gateway.
    Gateway(GatewayId),
    /// Another fog node.
    Validator(PublicKey),
}

impl Caller {
    /// Finds out who asks. A token, if there is one, goes before the certificate; a bad one is never passed over.
    ///
    /// # Errors
    /// 401 for a bad token.
    pub fn of(state: &State, peer: &Peer, headers: &HeaderMap) -> Result<Self, Fault> {
        if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
            return Err(Fault::unauthenticated("send one Authorization header, not several"));
        }
        if let Some(authorization) = headers.get(header::AUTHORIZATION) {
            let token = authorization.to_str().ok().and_then(|text| text.split_once(' '));
            let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let (_, token) =
                token.ok_or_else(|| Fault::unauthenticated("send the access token as Authorization: Bearer .."))?;
            return token::verify(token.trim(), state).map(Self::Client);
        }
        let Some(tls) = peer.tls else {
            return Ok(Self::Anonymous);
        };
        // Validators first: their keys are founded, and a gateway enrolled under one must not take their place.
        if let Some(validator) = state.validator_with_tls(&tls) {
            return Ok(Self::Validator(validator.key));
        }
        Ok(state.gateway_with_tls(&tls).map_or(Self::Stranger, |gateway| {
            Self::Gateway(gateway.enrolment.gateway.clone())
        }))
    }

    /// The bearer of a token.
    ///
    /// # Errors
    /// 401 for everybody else.
    pub fn client(self) -> Result<Client, Fault> {
        match self {
            Self::Client(client) => Ok(client),
            _ => Err(Fault::unauthenticated(
                "send an access token of your organization as Authorization: Bearer ..",
            )),
        }
    }

    /// The organisation to read for, if its token includes this right.
    ///
    /// # Errors
    /// 401 without a token, 403 without the scope.
    pub fn reader(self, resource: &str, right: Right) -> Result<OrganizationId, Fault> {
        let client = self.client()?;
        if !client.scopes.allow(resource, right) {
            let verbs = if right == Right::Create { "c" } else { "rs" };
            return Err(Fault::forbidden(format!(
                "the access token needs the scope system/{resource}.{verbs}"
            )));
        }
        Ok(client.organization)
    }

    /// The enrolled gateway.
    ///
    /// # Errors
    /// 409 for a certificate that may be enrolled in a moment, 403 for everybody else.
    pub fn gateway(self) -> Result<GatewayId, Fault> {
        match self {
            Self::Gateway(gateway) => Ok(gateway),
            Self::Stranger => Err(Fault::conflict(
                "no enrolled gateway has this certificate's key; try again when its enrolment is final",
            )),
            _ => Err(Fault::forbidden(
                "only an enrolled gateway, known by its TLS certificate, may do this",
            )),
        }
    }

    /// The validator.
    ///
    /// # Errors
    /// 403 for everybody else.
    pub fn validator(self) -> Result<PublicKey, Fault> {
        match self {
            Self::Validator(key) => Ok(key),
            _ => Err(Fault::forbidden(
                "only a fog node of this network, known by its TLS certificate, may do this",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::{
        genesis::{Genesis, Organization, Role, Validator},
        policy::ValidityPolicy,
    };
    use record::signature::SigningKey;

    fn peer(tls: Option<Digest>) -> Peer {
        Peer {
            address: ([127, 0, 0, 1], 9).into(),
            tls,
        }
    }

    fn state(tls: Digest) -> State {
        let (id, key): (OrganizationId, _) = ("hospital-a".parse().expect("good"), SigningKey::random().public());
        State::genesis(&Genesis {
            name: "test".to_owned(),
            founded_ms: 1,
            organizations: vec![Organization {
                id: id.clone(),
                name: "A".to_owned(),
                role: Role::Provider,
                key,
            }],
            validators: vec![Validator {
                organization: id,
                key,
                tls,
                address: None,
            }],
            policy: ValidityPolicy::default(),
        })
    }

    #[test]
    fn a_peer_is_known_by_its_key_alone() {
        let tls = Digest::of(Domain::TLS_KEY, &[b"spki"]);
        let state = state(tls);
        let of = |peer| Caller::of(&state, &peer, &HeaderMap::new()).expect("no token");
        assert!(of(peer(Some(tls))).validator().is_ok());
        assert_eq!(of(peer(None)), Caller::Anonymous);
        assert_eq!(of(peer(Some(Digest::ZERO))), Caller::Stranger);
        assert_eq!(
            of(peer(Some(Digest::ZERO)))
                .gateway()
                .expect_err("not enrolled")
                .status(),
            409
        );
        assert_eq!(of(peer(None)).gateway().expect_err("nobody").status(), 403);
        assert_eq!(
            of(peer(Some(tls)))
                .reader("Patient", Right::Read)
                .expect_err("no token")
                .status(),
            401
        );
    }

    #[test]
    fn a_bad_token_is_not_passed_over_for_a_good_certificate() {
        let tls = Digest::of(Domain::TLS_KEY, &[b"spki"]);
        let mut headers = HeaderMap::new();
        for bad in ["Basic cm9vdDpyb290", "Bearer nonsense", "Bearer"] {
            headers.insert(header::AUTHORIZATION, bad.parse().expect("a header"));
            assert_eq!(
                Caller::of(&state(tls), &peer(Some(tls)), &headers)
                    .expect_err("bad")
                    .status(),
                401
            );
        }
    }
}

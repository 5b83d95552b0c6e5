//! Keys, certificates, passwords and access tokens, all made anew for one run.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use record::{
    canonical::{Digest, Domain},
    ids::{NetworkId, OrganizationId},
    signature::SigningKey,
};
use rustls::{pki_types::CertificateDer, server::ParsedCertificate};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{fault::Fault, folder::Folder, ports::Host};

/// What a certificate of the sandbox is good for, in days; nobody should find one that outlives its run by long.
const CERTIFICATE_DAYS: u64 = 30;
/// Certificates are valid a little before they were made, for clocks that differ by minutes.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// Scopes of the tokens in the report: a system that reads.
pub const SCOPE: &str = "system/Observation.rs system/Patient.rs system/Binary.cr";
/// What the token of an observer may do: have sealed bundles. It opens nothing, so it may be shown to any fog node.
pub const SEALED_SCOPE: &str = "system/Bundle.rs";

/// The certificate authority of one run. Its private key lives in memory alone and ends with the process.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(..)")
    }
}

/// A TLS certificate on disk, and the digest by which the network knows its key.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub private_key: PathBuf,
    /// Digest of the public key, as pinned in the genesis and on the chain.
    pub pin: Digest,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`Fault::Identity`].
    pub fn new() -> Result<Self, Fault> {
        let fault = || Fault::identity::<rcgen::Error>("the certificate authority");
        let mut params = params("Vitalfog sandbox CA", Vec::new()).map_err(fault())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(fault())?;
        let pem = params.self_signed(&key).map_err(fault())?.pem();
        Ok(Self {
            pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a certificate for a process, server and client, that is reached on loopback or on the host of its own, and writes
    /// it to `<stem>.crt` and `<stem>.key`.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn issue(&self, folder: &Folder, stem: &str, name: &str, host: Option<&Host>) -> Result<TlsIdentity, Fault> {
        let fault = || Fault::identity::<rcgen::Error>("a certificate");
        let here = ["127.0.0.1", "localhost"].map(str::to_owned);
        let addresses = here.into_iter().chain(host.map(|host| host.address.to_string()));
        let mut params = params(name, addresses.collect()).map_err(fault())?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(fault())?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fault())?;
        Ok(TlsIdentity {
            certificate: folder.write(format!("{stem}.crt"), certificate.pem())?,
            private_key: folder.write(format!("{stem}.key"), key.serialize_pem())?,
            pin: pin(certificate.der())?,
        })
    }
}

fn params(name: &str, names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + Duration::from_secs(CERTIFICATE_DAYS * 86_400);
    Ok(params)
}

fn pin(certificate: &CertificateDer<'_>) -> Result<Digest, Fault> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(Fault::identity("a certificate"))?;
    Ok(Digest::of(
        Domain::TLS_KEY,
        &[parsed.subject_public_key_info().as_ref()],
    ))
}

/// The access tokens in the report.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Of a client of the custodian.
    pub hospital: String,
    /// Of a client of the stranger.
    pub stranger: String,
}

/// Writes a new ed25519 key as PEM and returns it with its path.
///
/// # Errors
/// [`Fault::Identity`] or [`Fault::File`].
pub fn signing_key(folder: &Folder, inside: &str) -> Result<(SigningKey, PathBuf), Fault> {
    let key = SigningKey::random();
    let path = folder.write(
        inside,
        key.to_pem().map_err(Fault::identity("a signing key"))?.as_bytes(),
    )?;
    Ok((key, path))
}

/// A random secret on disk, and what the other side keeps of it.
#[derive(Clone, Debug)]
pub struct Password {
    /// The file that holds it, without a line end.
    pub file: PathBuf,
    /// Hex of its SHA-256: it has 256 random bits, so a plain hash gives nothing away.
    pub sha256: String,
}

impl Password {
    /// Draws one and writes it.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn create(folder: &Folder, inside: &str) -> Result<Self, Fault> {
        let text = hex::encode(rand::random::<[u8; 32]>());
        Ok(Self {
            sha256: hex::encode(Sha256::digest(&text)),
            file: folder.write(inside, text)?,
        })
    }
}

/// The claims of an access token (RFC 9068), as every node checks them against the chain alone.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a OrganizationId,
    sub: &'a str,
    aud: NetworkId,
    scope: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
}

/// Signs an access token for a client of an organisation with a scope, with the organisation's key.
///
/// # Errors
/// [`Fault::Identity`].
pub fn access_token(
    (organization, key): (&OrganizationId, &SigningKey),
    (client, scope): (&str, &str),
    network: NetworkId,
    lifetime: Duration,
) -> Result<String, Fault> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let claims = Claims {
        iss: organization,
        sub: client,
        aud: network,
        scope,
        iat: now,
        exp: now + lifetime.as_secs(),
        jti: uuid::Uuid::new_v4().to_string(),
    };
    let mut header = jsonwebtoken::Header::new(Algorithm::EdDSA);
    header.typ = Some("at+jwt".to_owned());
    let pem = key.to_pem().map_err(Fault::identity("an access token"))?;
    let key = EncodingKey::from_ed_pem(pem.as_bytes()).map_err(Fault::identity("an access token"))?;
    jsonwebtoken::encode(&header, &claims, &key).map_err(Fault::identity("an access token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(dir.path()).expect("creates");
        (dir, folder)
    }

    #[test]
    fn every_certificate_has_a_key_of_its_own() {
        let (_dir, folder) = folder();
        let authority = Authority::new().expect("makes");
        let one = authority.issue(&folder, "one", "node 1", None).expect("issues");
        let two = authority.issue(&folder, "two", "node 2", None).expect("issues");
        assert_ne!(one.pin, two.pin);
        assert!(
            std::fs::read_to_string(one.private_key)
                .expect("written")
                .contains("PRIVATE KEY")
        );
    }

    #[test]
    fn a_token_verifies_with_the_key_on_the_chain() {
        let key = SigningKey::random();
        let network = NetworkId(Digest::of(Domain::GENESIS, &[b"test"]));
        let organization = "hospital-a".parse().expect("good");
        let token = access_token(
            (&organization, &key),
            ("client", SCOPE),
            network,
            Duration::from_secs(60),
        )
        .expect("signs");
        let mut rules = jsonwebtoken::Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[network.to_string()]);
        let public = jsonwebtoken::DecodingKey::from_ed_der(key.public().as_bytes());
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &public, &rules)
            .expect("verifies")
            .claims;
        assert_eq!(
            (claims["iss"].as_str(), claims["sub"].as_str()),
            (Some("hospital-a"), Some("client"))
        );
        let other = jsonwebtoken::DecodingKey::from_ed_der(SigningKey::random().public().as_bytes());
        assert!(jsonwebtoken::decode::<serde_json::Value>(&token, &other, &rules).is_err());
    }

    #[test]
    fn a_password_file_holds_the_password_alone() {
        let (_dir, folder) = folder();
        let password = Password::create(&folder, "home.password").expect("creates");
        let text = std::fs::read(&password.file).expect("written");
        assert_eq!((text.len(), hex::encode(Sha256::digest(&text))), (64, password.sha256));
    }
}

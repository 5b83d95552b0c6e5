//! The TLS of the gateway: who is trusted, who it is, only TLS 1.3 towards fog nodes, and certificates of devices.

use std::{collections::HashSet, path::Path, sync::Arc};

use ::aws_lc_rs::digest;
use record::canonical::{Digest, Domain};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use crate::secret;

/// A client of brokers whose certificates this authority signs; it presents a certificate of its own if it has one.
///
/// # Errors
/// A sentence about the file that cannot be used.
pub fn client_of_authority(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots(ca)?);
    let Some((certificate, private_key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = own(certificate, private_key)?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| format!("{}: {e}", certificate.display()))
}

/// A server with this certificate. Clients may present certificates that the authority signs, or must.
///
/// # Errors
/// A sentence about the file that cannot be used.
pub fn server_of_devices(
    (certificate, private_key): (&Path, &Path),
    client_ca: Option<&Path>,
    required: bool,
) -> Result<ServerConfig, String> {
    let (chain, key) = own(certificate, private_key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
            let verifier = if required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier = verifier.build().map_err(|e| format!("{}: {e}", ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder
        .with_single_cert(chain, key)
        .map_err(|e| format!("{}: {e}", certificate.display()))
}

fn own(
    certificate: &Path,
    private_key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let key = secret::read_tls_key(private_key).map_err(|e| format!("{}: {e}", private_key.display()))?;
    Ok((certificates(certificate)?, key))
}

/// A client of fog nodes: TLS 1.3, its own certificate, and nodes whose certificate the authority signed *and* whose key is
/// pinned in the network's genesis.
///
/// # Errors
/// A sentence about the file that cannot be used.
pub fn client_of_nodes(
    ca: &Path,
    (certificate, private_key): (&Path, &Path),
    pinned: HashSet<Digest>,
) -> Result<ClientConfig, String> {
    let (chain, key) = own(certificate, private_key)?;
    let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .build()
        .map_err(|e| format!("{}: {e}", ca.display()))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous() // stricter than the default: the authority's check is made first
        .with_custom_certificate_verifier(Arc::new(Pinned { by_authority, pinned }))
        .with_client_auth_cert(chain, key)
        .map_err(|e| format!("{}: {e}", certificate.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(all) if all.is_empty() => Err(format!("{}: no certificate in it", path.display())),
        Ok(all) => Ok(all),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// SHA-256 of the first certificate in a file, in hex: for a device that is to know an authority again.
///
/// # Errors
/// A sentence about the file.
pub fn fingerprint(path: &Path) -> Result<String, String> {
    let all = certificates(path)?;
    let first = all.first().map(|first| digest::digest(&digest::SHA256, first.as_ref()));
    first
        .map(hex::encode)
        .ok_or_else(|| format!("{}: no certificate in it", path.display()))
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(roots)
}

/// The authority's check, then the pin.
#[derive(Debug)]
struct Pinned {
    by_authority: Arc<WebPkiServerVerifier>,
    pinned: HashSet<Digest>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified =
            self.by_authority
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        if self.pinned.contains(&Digest::of(Domain::TLS_KEY, &[&key])) {
            Ok(verified)
        } else {
            Err(TlsError::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.by_authority
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.by_authority
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

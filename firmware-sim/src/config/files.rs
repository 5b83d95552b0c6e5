//! The files and addresses that a configuration names, each with a sentence about what is wrong with it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// A certificate and its private key.
pub(super) type Identity<'a> = (&'a Path, &'a Path);

/// The list of devices.
pub(super) fn entries(path: &Path) -> Result<Vec<serde_json::Value>, String> {
    let text = fs::read(path).map_err(|e| format!("devices: cannot read {}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("devices: {}: {e}", path.display()))
}

/// Host and port.
pub(super) fn address(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("[mqtt] address must be host:port")?;
    let port = port.parse().map_err(|_| "[mqtt] address must end in a port number")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    rustls::pki_types::ServerName::try_from(host)
        .map_err(|_| "[mqtt] address must start with a host name or IP address")?;
    Ok((host.to_owned(), port))
}

/// A TLS client that trusts this authority and nobody else, and presents a certificate if it has one.
pub(super) fn trusting(ca: &Path, identity: Option<Identity<'_>>) -> Result<rustls::ClientConfig, String> {
    let complaint = |why: String| format!("[mqtt] ca {}: {why}", ca.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| complaint(e.to_string()))? {
        let certificate = certificate.map_err(|e| complaint(e.to_string()))?;
        roots.add(certificate).map_err(|e| complaint(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(complaint("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| complaint(e.to_string()))?;
    let builder = builder.with_root_certificates(roots);
    let Some((certificate, private_key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let complaint = |e: String| format!("certificate {}: {e}", certificate.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| complaint(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(secret(private_key)?.as_bytes())
        .map_err(|e| format!("private_key {}: {e}", private_key.display()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| complaint(e.to_string()))
}

/// The text of a file that nobody but its owner can read.
pub(crate) fn secret(path: &Path) -> Result<String, String> {
    let complaint = |why: String| format!("{}: {why}", path.display());
    let mode = fs::metadata(path)
        .map_err(|e| complaint(e.to_string()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(complaint(format!(
            "others can read it (mode {:03o}); chmod 600",
            mode & 0o777
        )));
    }
    fs::read_to_string(path).map_err(|e| complaint(e.to_string()))
}

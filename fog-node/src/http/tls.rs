//! Who this node is to others, and whom it takes for one of the network: certificates and key, read from PEM files.

use std::{fs, io, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM of the right kind.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not fit the certificate, or the like.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("TLS client certificates: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Certificates and key of this node, read from PEM files.
#[derive(Debug)]
pub struct Identity {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The network's CA.
    pub roots: Arc<RootCertStore>,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(certificate: &Path, key: &Path, ca: &Path) -> Result<Self, TlsError> {
        let file = |path: &Path| {
            let path = path.display().to_string();
            move |source| TlsError::File { path, source }
        };
        let certificates = |path: &Path| -> Result<Vec<_>, TlsError> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(file(path))?.collect();
            let all = all.map_err(file(path))?;
            if all.is_empty() {
                Err(file(path)(rustls::pki_types::pem::Error::NoItemsFound))
            } else {
                Ok(all)
            }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root)?;
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(file(key))?;
        Ok(Self {
            chain: certificates(certificate)?,
            key,
            roots: Arc::new(roots),
        })
    }

    /// TLS 1.2 and 1.3; a client may show a certificate, and then it must be one of the CA.
    ///
    /// # Errors
    /// [`TlsError`] if key and certificate do not fit.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone());
        let verifier = verifier.allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS 1.3 to other nodes, with our certificate.
    ///
    /// # Errors
    /// [`TlsError`] if key and certificate do not fit.
    pub fn client(&self) -> Result<rustls::ClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        // Said here, since the HTTP client leaves a ready-made configuration as it is.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Whether only its owner can read a file; a key that others can read is none.
///
/// # Errors
/// The file cannot be looked at.
pub fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 == 0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    /// One CA and certificates of it.
    pub(in crate::http) struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        pub(in crate::http) fn new() -> Self {
            let mut ca = CertificateParams::new(vec![]).expect("names");
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA"))
        }

        pub(in crate::http) fn issue(&self) -> Identity {
            let key = KeyPair::generate().expect("a key");
            let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
            let leaf = leaf.signed_by(&key, &self.0).expect("a certificate");
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).expect("a root");
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            Identity {
                chain: vec![leaf.der().clone()],
                key,
                roots: Arc::new(roots),
            }
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let missing = Identity::read(&path("node.crt"), &path("node.key"), &path("ca.crt")).expect_err("missing");
        assert!(missing.to_string().contains("ca.crt"), "{missing}");
        fs::write(path("ca.crt"), "no PEM").expect("written");
        let empty = Identity::read(&path("node.crt"), &path("node.key"), &path("ca.crt")).expect_err("empty");
        assert!(empty.to_string().contains("ca.crt"), "{empty}");
    }

    #[test]
    fn a_key_that_others_can_read_is_not_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        for (mode, expected) in [(0o600, true), (0o640, false), (0o604, false)] {
            fs::write(&path, "").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(is_private(&path).expect("looked at"), expected, "{mode:o}");
        }
    }
}

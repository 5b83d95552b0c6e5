//! How a client logs in at a broker that is not ours: where that is, whom it trusts, and the password, read from files.

use std::{fmt, path::Path, sync::Arc};

use rustls::ClientConfig;

use crate::secret;

/// What is needed to log in.
#[derive(Clone)]
pub struct Access {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) password: Option<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({}:{})", self.host, self.port)
    }
}

impl Access {
    /// What a section of the configuration names, if all of it can be used: `host:port`, TLS that was made of its files, and the
    /// file of a password. Each fault is one sentence that names the key.
    pub(crate) fn read(
        section: &str,
        address: &str,
        tls: Result<ClientConfig, String>,
        password_file: Option<&Path>,
        faults: &mut Vec<String>,
    ) -> Option<Self> {
        let place = address.rsplit_once(':');
        let place = place.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        if place.is_none() {
            faults.push(format!("{section}.address {address:?} must be host:port"));
        }
        let tls = tls.map_err(|fault| faults.push(fault)).ok();
        let password = password_file.map(|file| {
            let read = secret::read(file).map_err(|e| format!("{section}.password_file {}: {e}", file.display()));
            read.map_err(|fault| faults.push(fault))
        });
        let ((host, port), tls, password) = (place?, tls?, password.transpose().ok()?);
        Some(Self {
            host,
            port,
            tls: Arc::new(tls),
            password: password.map(|password| password.trim_end().to_owned()),
        })
    }
}

//! Where another fog node answers.

use std::{fmt, str::FromStr as _};

use serde::{Deserialize, Serialize};

/// The base URL of a fog node, e.g. `https://127.0.0.1:8402`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Peer(String);

impl TryFrom<String> for Peer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = reqwest::Url::from_str(&text).map_err(|e| format!("peer {text:?} is not a URL: {e}"))?;
        let is_loopback = url
            .host_str()
            .is_some_and(|host| ["127.0.0.1", "[::1]", "localhost"].contains(&host));
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
            return Err(format!("peer {text:?} must be https (plain http only on loopback)"));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(format!("peer {text:?} must be scheme, host and port alone"));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.0
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

//! What is printed for a new device: everything that it needs to find, check and ask this gateway.

use std::fmt;

use record::ids::{DeviceId, GatewayId, NetworkId};
use serde::{Deserialize, Serialize};

use super::ClaimId;

/// Which broker the device meets, and with it how it shows that it has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The gateway's own: it connects as `claim-` and the claim, and the secret is its password.
    Embedded,
    /// Somebody else's, who must not learn the secret: the request proves it, and it connects as the user that is printed.
    External,
}

/// The printed code, as text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The version of this form.
    pub v: u8,
    /// Which broker it is.
    pub broker: Kind,
    /// Where to connect, `mqtts://host:port`.
    pub url: String,
    /// The broker's user for claims, at an outside broker that goes by passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its password, which every code of this gateway has: it opens the topics of claims and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// SHA-256 of the certificate of the authority that signed the broker's, in hex.
    pub ca_sha256: String,
    /// The network, for the proof.
    pub network: NetworkId,
    /// The gateway, for topics and the proof.
    pub gateway: GatewayId,
    /// What the device seals its messages to, 64 hexadecimal digits.
    pub reading_key: String,
    /// What the device is called.
    pub device: DeviceId,
    /// The claim.
    pub claim: ClaimId,
    /// Its secret.
    pub secret: String,
    /// Until when, in milliseconds since 1970.
    pub expires_ms: i64,
}

/// Whether a device can connect there: `mqtts://host:port`, and nothing else.
#[must_use]
pub fn is_address(url: &str) -> bool {
    let place = url.strip_prefix("mqtts://").and_then(|place| place.rsplit_once(':'));
    place.is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/@?#".contains(c));
        // An IPv6 address stands in brackets, so that its colons are not the port's.
        let is_whole = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        let is_port = port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        is_host && is_whole && is_port
    })
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({} for {})", self.claim, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_sent_nowhere_without_tls_nor_without_a_port() {
        for good in [
            "mqtts://broker.example:8883",
            "mqtts://127.0.0.1:18830",
            "mqtts://[::1]:8883",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "http://broker.example:8883",
            "mqtt://broker.example:1883",
            "broker.example:8883",
            "mqtts://broker.example",
            "mqtts://:8883",
            "mqtts://broker.example:0",
            "mqtts://broker.example:88833",
            "mqtts://broker.example:8883/",
            "mqtts://user@broker.example:8883",
            "mqtts://::1:8883",
            "mqtts://a:b:8883",
            "mqtts://broker.example:+8883",
            "",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}

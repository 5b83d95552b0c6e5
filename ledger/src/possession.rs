//! Proof that whoever names a device's public key has its private half: the key signs network, gateway and device.

use record::{
    canonical::Domain,
    ids::{DeviceId, GatewayId, NetworkId},
    signature::{PublicKey, Signature, SigningKey},
};
use serde::{Deserialize, Serialize};

/// A signature by a device's key over what it is meant for. It can be copied, and is of no use elsewhere: the gateway that it
/// names has one operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Possession(Signature);

impl Possession {
    /// Proves it.
    #[must_use]
    pub fn prove(network: &NetworkId, place: (&GatewayId, &DeviceId), key: &SigningKey) -> Self {
        Self(key.sign(Domain::POSSESSION, text(network, place).as_bytes()))
    }

    /// Whether `key` proved it for this network, gateway and device.
    #[must_use]
    pub fn holds(&self, network: &NetworkId, place: (&GatewayId, &DeviceId), key: &PublicKey) -> bool {
        key.verify(Domain::POSSESSION, text(network, place).as_bytes(), &self.0)
            .is_ok()
    }
}

/// Text, so that a device maker can sign it with any tool; no name has a slash.
fn text(network: &NetworkId, (gateway, device): (&GatewayId, &DeviceId)) -> String {
    format!("{network}/{gateway}/{device}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::canonical::Digest;

    #[test]
    fn a_proof_holds_for_its_key_network_gateway_and_device_alone() {
        let (key, network) = (SigningKey::random(), NetworkId(Digest::ZERO));
        let other = NetworkId(Digest::of(Domain::GENESIS, &[b"other"]));
        let (home, away): (GatewayId, GatewayId) = ("home-1".parse().expect("good"), "home-2".parse().expect("good"));
        let (cuff, scale): (DeviceId, DeviceId) = ("cuff-1".parse().expect("good"), "scale-1".parse().expect("good"));
        let proof = Possession::prove(&network, (&home, &cuff), &key);
        assert!(proof.holds(&network, (&home, &cuff), &key.public()));
        assert!(!proof.holds(&other, (&home, &cuff), &key.public()));
        assert!(!proof.holds(&network, (&away, &cuff), &key.public()));
        assert!(!proof.holds(&network, (&home, &scale), &key.public()));
        assert!(!proof.holds(&network, (&home, &cuff), &SigningKey::random().public()));
    }
}

//! A device seals what it has signed to its gateway's reading key, and does it wrong if a fault says so.

use record::{
    ids::{GatewayId, NetworkId},
    topic::Topic,
    transit::{ReadingKey, SealError},
};
use serde::{Deserialize, Serialize};

use super::Device;
use crate::{fault::Fault, signal::Stream};

/// What the devices seal to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network that the gateway belongs to, as its `/status` or the printed code says.
    pub network: NetworkId,
    /// The gateway's reading key, 64 hexadecimal digits.
    pub reading_key: String,
}

impl Config {
    /// The key of this gateway, if it can be sealed to.
    pub(crate) fn key(&self, gateway: GatewayId) -> Result<ReadingKey, SealError> {
        let key = ReadingKey::read(self.network, gateway, &self.reading_key)?;
        let probe = Topic {
            device: "probe".parse().expect("a good name"),
            channel: Stream::Reading.channel(),
        };
        key.seal(&probe, b"")?;
        Ok(key)
    }
}

impl Device {
    /// What is published for a signed message.
    pub(super) fn sealed(&self, message: Vec<u8>, stream: Stream, fault: Option<Fault>) -> Vec<u8> {
        let key = self.home.seal.as_ref().filter(|_| self.habits.seals);
        let Some(key) = key.filter(|_| !matches!(fault, Some(Fault::Unsealed | Fault::Giant))) else {
            return message;
        };
        let mut key = key.clone();
        let mut topic = Topic {
            device: self.id.clone(),
            channel: stream.channel(),
        };
        if fault == Some(Fault::Misdirected) {
            let somewhere = "somewhere-else";
            match rand::random_range(0..3) {
                0 => key.gateway = somewhere.parse().expect("a good name"),
                1 => topic.device = somewhere.parse().expect("a good name"),
                _ => topic.channel = other(stream).channel(),
            }
        }
        // Never in the clear instead: who cannot seal does not send.
        let sealed = key.seal(&topic, &message);
        let mut bytes = sealed
            .expect("the key was tried, and what is measured at once is small")
            .encode();
        match fault {
            Some(Fault::Truncated) => bytes.truncate(rand::random_range(1..bytes.len())),
            Some(Fault::Flipped) => {
                // In the ciphertext, which is more than the last 512 bytes.
                let at = bytes.len() - rand::random_range(1..=512);
                bytes[at] ^= 1 << rand::random_range(0..8);
            }
            _ => {}
        }
        bytes
    }
}

const fn other(stream: Stream) -> Stream {
    match stream {
        Stream::Reading => Stream::Event,
        Stream::Wave | Stream::Event => Stream::Reading,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::tests::device, fault};
    use record::{
        canonical::Digest,
        reading::{Reason, SignedReading},
        signature::SigningKey,
        transit::{ReadingKeys, SealedReading},
    };
    use std::{path::PathBuf, sync::Arc};

    /// What the gateway says of what a device publishes first, with these faults.
    async fn judged(faults: fault::Config) -> Result<(), Reason> {
        let keys = ReadingKeys::generate(NetworkId(Digest::ZERO), "home-1".parse().expect("good"), 0);
        let keys = keys.expect("random numbers");
        let key = SigningKey::random();
        let (mut device, _inbox) = device(&key, &faults, PathBuf::new());
        Arc::get_mut(&mut device.home).expect("its own").seal = Some(keys.current().clone());
        device.measure().await;
        let sending = device.journal.send(1).expect("measured");
        let topic = Topic {
            device: device.id.clone(),
            channel: sending.stream.channel(),
        };
        if !SealedReading::is_form_of(&sending.payload) {
            let signed = SignedReading::receive(&sending.payload).map_err(|refusal| refusal.reason)?;
            signed.decode(|_| Some(key.public())).expect("signed");
            return Err(Reason::Unsealed);
        }
        let opened = SealedReading::receive(&sending.payload).and_then(|sealed| keys.open(&topic, &sealed));
        let signed = SignedReading::receive(&opened.map_err(|refusal| refusal.reason)?).expect("small");
        signed
            .decode(|_| Some(key.public()))
            .map(drop)
            .map_err(|refusal| refusal.reason)
    }

    #[tokio::test]
    async fn a_reading_is_sealed_for_its_topic_and_each_fault_spoils_it_in_its_way() {
        let with = |change: fn(&mut fault::Config)| {
            let mut faults = fault::Config::default();
            change(&mut faults);
            judged(faults)
        };
        assert_eq!(with(|_| {}).await, Ok(()));
        assert_eq!(with(|f| f.wrong_key = 1.0).await, Err(Reason::WrongSignature));
        assert_eq!(with(|f| f.giants = 1.0).await, Err(Reason::TooLarge));
        assert_eq!(with(|f| f.unsealed = 1.0).await, Err(Reason::Unsealed));
        // Each draws how.
        for _ in 0..20 {
            assert_eq!(with(|f| f.misdirected = 1.0).await, Err(Reason::NotOpened));
            assert_eq!(with(|f| f.flipped = 1.0).await, Err(Reason::NotOpened));
            assert_eq!(with(|f| f.truncated = 1.0).await, Err(Reason::Malformed));
        }
    }

    #[test]
    fn a_key_that_cannot_be_sealed_to_is_refused() {
        let key = |text: &str| {
            let config = Config {
                network: NetworkId(Digest::ZERO),
                reading_key: text.to_owned(),
            };
            config.key("home-1".parse().expect("good"))
        };
        assert!(matches!(key("ab"), Err(SealError::NotHex)));
        assert!(matches!(key(&"00".repeat(32)), Err(SealError::Key)));
    }
}

//! A signed message on its way to its gateway, sealed (HPKE) to the gateway's reading key: who carries it reads nothing.

mod keys;

use std::fmt;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use crate::{
    canonical::{self, Digest, Domain},
    ids::{GatewayId, NetworkId, ReadingKeyId},
    padding::{padded, unpadded},
    reading::{READING_BYTES_MAX, Reason, Refusal, within_size},
    topic::Topic,
};

pub use self::keys::{KEYS_MAX, KeptKeys, KeysError, ReadingKeys};

/// Version of the sealed form.
pub const VERSION: u8 = 1;
/// A message is padded to one of these sizes. A single value, in either form, fits in the first.
const PADDING_CLASSES: [usize; 5] = [512, 1 << 10, 1 << 12, 1 << 14, 65_408];
/// The longest message that can be sealed: sealed, it is no larger than any message may be.
pub const CONTENT_BYTES_MAX: usize = PADDING_CLASSES[PADDING_CLASSES.len() - 1] - 4;
/// What AES-256-GCM adds.
const TAG_BYTES: usize = 16;
/// An X25519 public key, and what HPKE encapsulates with one.
const POINT_BYTES: usize = 32;
/// A CBOR map of four: the sealed form has four fields. JSON begins with `{`, a COSE_Sign1 message with an array.
const FIRST_BYTE: u8 = 0xa4;

/// The public half of a gateway's reading key, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadingKey {
    /// The network that the gateway belongs to.
    pub network: NetworkId,
    /// The gateway.
    pub gateway: GatewayId,
    /// X25519 public key, 32 bytes.
    public: [u8; POINT_BYTES],
}

/// Why a message cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Too many bytes.
    #[error("a message of {bytes} bytes cannot be sealed, at most {CONTENT_BYTES_MAX} can: split it")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// Not every 32 bytes are a usable point.
    #[error("the reading key is no X25519 key that can be sealed to: take it from the gateway's /status")]
    Key,
    /// The text is no key.
    #[error(
        "a reading key is 64 lower-case hexadecimal digits: take it from the gateway's /status or the printed code"
    )]
    NotHex,
}

impl ReadingKey {
    /// The key of a gateway, from the text that the gateway shows: 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`SealError::NotHex`].
    pub fn read(network: NetworkId, gateway: GatewayId, text: &str) -> Result<Self, SealError> {
        let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        let public: [u8; POINT_BYTES] = bytes.ok_or(SealError::NotHex)?;
        // One text for each key.
        if hex::encode(public) != text {
            return Err(SealError::NotHex);
        }
        Ok(Self {
            network,
            gateway,
            public,
        })
    }

    /// The public half as text.
    #[must_use]
    pub fn public(&self) -> String {
        hex::encode(self.public)
    }

    /// Its identifier: of the key, the network and the gateway together, so that none can be taken for another's.
    #[must_use]
    pub fn id(&self) -> ReadingKeyId {
        let parts = [
            &self.public[..],
            self.network.0.as_bytes(),
            self.gateway.as_str().as_bytes(),
        ];
        ReadingKeyId(Digest::of(Domain::READING_KEY, &parts))
    }

    /// Seals a signed message for a topic of this gateway: HPKE base mode, X25519, HKDF-SHA256, AES-256-GCM (RFC 9180). The
    /// domain and the key's identifier are the `info`, the topic's name is the associated data.
    ///
    /// # Errors
    /// [`SealError::TooLarge`] or [`SealError::Key`].
    pub fn seal(&self, topic: &Topic, message: &[u8]) -> Result<SealedReading, SealError> {
        let plaintext = padded(message, &PADDING_CLASSES).ok_or(SealError::TooLarge { bytes: message.len() })?;
        let id = self.id();
        let sealed = SUITE.seal(
            &info(&id),
            topic.name(&self.gateway).as_bytes(),
            &plaintext,
            &HpkePublicKey(self.public.to_vec()),
        );
        let (enc, ciphertext) = sealed.map_err(|_| SealError::Key)?;
        Ok(SealedReading {
            v: VERSION,
            enc: ByteBuf::from(enc.0),
            key: id,
            ciphertext: ByteBuf::from(ciphertext),
        })
    }
}

/// Domain and key: with another domain, network, gateway or key nothing opens.
fn info(id: &ReadingKeyId) -> Vec<u8> {
    [Domain::SEALED_READING.as_str().as_bytes(), id.0.as_bytes()].concat()
}

/// Both halves of a reading key: the private one is wiped when dropped, and never printed.
#[derive(Clone)]
pub struct ReadingSecret {
    key: ReadingKey,
    secret: Zeroizing<Vec<u8>>,
}

impl ReadingSecret {
    /// A new pair for a gateway.
    ///
    /// # Errors
    /// [`SealError::Key`] if the system gives no random numbers.
    pub fn generate(network: NetworkId, gateway: GatewayId) -> Result<Self, SealError> {
        let (public, secret) = SUITE.generate_key_pair().map_err(|_| SealError::Key)?;
        let public = public.0.try_into().map_err(|_| SealError::Key)?;
        let secret = Zeroizing::new(secret.secret_bytes().to_vec());
        let key = ReadingKey {
            network,
            gateway,
            public,
        };
        Ok(Self { key, secret })
    }

    /// A pair from its halves, if they belong together.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn of(key: ReadingKey, secret: Zeroizing<Vec<u8>>) -> Result<Self, SealError> {
        const PROBE: &[u8] = b"probe";
        let (enc, sealed) = SUITE
            .seal(PROBE, PROBE, PROBE, &HpkePublicKey(key.public.to_vec()))
            .map_err(|_| SealError::Key)?;
        SUITE
            .open(&enc, PROBE, PROBE, &sealed, &HpkePrivateKey::from(secret.to_vec()))
            .map_err(|_| SealError::Key)?;
        Ok(Self { key, secret })
    }

    /// The public half.
    #[must_use]
    pub const fn key(&self) -> &ReadingKey {
        &self.key
    }

    /// The 32 bytes of the private half, for the gateway's file alone.
    #[must_use]
    pub fn secret_bytes(&self) -> &[u8] {
        &self.secret
    }

    /// Opens what came under a topic: the signed message, exactly as the device signed it.
    ///
    /// # Errors
    /// [`Reason::NotOpened`]: it is not for this key and topic, or was altered.
    pub fn open(&self, topic: &Topic, sealed: &SealedReading) -> Result<Vec<u8>, Refusal> {
        let opened = SUITE.open(
            &EncapsulatedSecret(sealed.enc.to_vec()),
            &info(&self.key.id()),
            topic.name(&self.key.gateway).as_bytes(),
            &sealed.ciphertext,
            &HpkePrivateKey::from(self.secret.to_vec()),
        );
        let plaintext = opened.map(Zeroizing::new).map_err(|_| {
            let detail = "it was sealed for another topic than the one it came under, or was altered on its way; seal it for \
                          exactly the topic that it is published under";
            Refusal::new(Reason::NotOpened, detail)
        })?;
        match unpadded(&plaintext) {
            Some((message, rest)) if rest.iter().all(|byte| *byte == 0) => Ok(message.to_vec()),
            _ => Err(malformed("what is sealed is not a length, that many bytes, and zeros")),
        }
    }
}

impl fmt::Debug for ReadingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadingSecret({})", self.key.id())
    }
}

/// A message that only its gateway can read. It says for which of the gateway's keys it is, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedReading {
    /// Version of the form.
    v: u8,
    /// HPKE encapsulated secret.
    enc: ByteBuf,
    /// Which key opens it.
    key: ReadingKeyId,
    /// AES-256-GCM over the padded message.
    ciphertext: ByteBuf,
}

impl SealedReading {
    /// Whether a message has the sealed form, and neither of the signed ones: the first byte says it.
    #[must_use]
    pub fn is_form_of(message: &[u8]) -> bool {
        message.first() == Some(&FIRST_BYTE)
    }

    /// Reads the bytes of a message: size first, then strictly.
    ///
    /// # Errors
    /// [`Reason::TooLarge`] or [`Reason::Malformed`].
    pub fn receive(message: &[u8]) -> Result<Self, Refusal> {
        within_size(message)?;
        // The decoder's own words may repeat what stands there.
        let sealed: Self = canonical::decode(message, READING_BYTES_MAX).map_err(|_| {
            malformed("it begins like a sealed message and is none: compare with docs/devices/sealed.cddl")
        })?;
        if sealed.v != VERSION {
            return Err(malformed(format!(
                "version {} of the sealed form is not {VERSION}",
                sealed.v
            )));
        }
        let is_class = |class: &usize| sealed.ciphertext.len() == class + TAG_BYTES;
        if sealed.enc.len() != POINT_BYTES || !PADDING_CLASSES.iter().any(is_class) {
            return Err(malformed(
                "a sealed message has 32 bytes of enc, and a ciphertext of one of the sizes in docs/devices/sealed.cddl",
            ));
        }
        Ok(sealed)
    }

    /// The key that opens it, if it says the truth.
    #[must_use]
    pub const fn key(&self) -> &ReadingKeyId {
        &self.key
    }

    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{reading::tests::reading, signature::SigningKey, topic::Channel};
    use proptest::prelude::*;

    fn gateway(name: &str) -> ReadingSecret {
        let network = NetworkId(Digest::of(Domain::GENESIS, &[b"test"]));
        ReadingSecret::generate(network, name.parse().expect("good")).expect("random numbers")
    }

    fn topic(device: &str, channel: Channel) -> Topic {
        Topic {
            device: device.parse().expect("good"),
            channel,
        }
    }

    fn own() -> Topic {
        topic("oximeter-1", Channel::Reading)
    }

    /// The suite is the one of RFC 9180: its test vector for base mode, X25519, HKDF-SHA256, AES-256-GCM (kem 32, kdf 1, aead 2).
    #[test]
    fn the_suite_opens_the_test_vector_of_the_standard() {
        let bytes = |text: &str| hex::decode(text).expect("hex");
        let secret = bytes("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d");
        let enc = bytes("6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256");
        let sealed =
            bytes("e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a");
        let opened = SUITE.open(
            &EncapsulatedSecret(enc),
            b"Ode on a Grecian Urn",
            b"Count-0",
            &sealed,
            &HpkePrivateKey::from(secret),
        );
        assert_eq!(opened.expect("opens"), b"Beauty is truth, truth beauty");
    }

    #[test]
    fn the_gateway_reads_exactly_what_was_signed_under_its_topic_alone() {
        let (home, other) = (gateway("home-1"), gateway("home-1"));
        let key = SigningKey::random();
        for signed in [reading().sign(&key), reading().sign_json(&key)] {
            let message = home.key().seal(&own(), signed.as_bytes()).expect("seals").encode();
            assert!(SealedReading::is_form_of(&message) && !SealedReading::is_form_of(signed.as_bytes()));
            let sealed = SealedReading::receive(&message).expect("well formed");
            assert_eq!(sealed.key(), &home.key().id());
            assert_eq!(home.open(&own(), &sealed).expect("opens"), signed.as_bytes());
            let elsewhere = [
                topic("scale-1", Channel::Reading),
                topic("oximeter-1", Channel::Event),
                topic("oximeter-1", Channel::Wave),
            ];
            for topic in elsewhere {
                let refusal = home.open(&topic, &sealed).expect_err("another topic");
                assert_eq!(refusal.reason, Reason::NotOpened, "{topic:?}");
            }
            assert_eq!(
                other.open(&own(), &sealed).expect_err("another key").reason,
                Reason::NotOpened
            );
        }
    }

    #[test]
    fn a_key_is_of_one_network_and_one_gateway() {
        let home = gateway("home-1");
        let with = |network: NetworkId, gateway: &str| {
            let key = ReadingKey::read(network, gateway.parse().expect("good"), &home.key().public()).expect("a key");
            ReadingSecret::of(key, Zeroizing::new(home.secret_bytes().to_vec())).expect("the halves belong together")
        };
        let network = home.key().network;
        let sealed = home.key().seal(&own(), b"x").expect("seals");
        assert_eq!(with(network, "home-1").open(&own(), &sealed).expect("opens"), b"x");
        for other in [with(NetworkId(Digest::ZERO), "home-1"), with(network, "home-2")] {
            assert_ne!(other.key().id(), home.key().id());
            assert!(other.open(&own(), &sealed).is_err(), "{other:?}");
        }
        let foreign = gateway("home-1");
        assert!(ReadingSecret::of(foreign.key().clone(), Zeroizing::new(home.secret_bytes().to_vec())).is_err());
    }

    #[test]
    fn a_text_that_is_no_key_is_refused_and_a_point_of_small_order_is_not_sealed_to() {
        let read = |text: &str| ReadingKey::read(NetworkId(Digest::ZERO), "home-1".parse().expect("good"), text);
        for bad in ["", "ab", &"xy".repeat(32), &"AB".repeat(32), &"ab".repeat(33)] {
            assert!(matches!(read(bad), Err(SealError::NotHex)), "{bad}");
        }
        let small = read(&"00".repeat(32)).expect("hex");
        assert!(matches!(small.seal(&own(), b"x"), Err(SealError::Key)));
    }

    #[test]
    fn the_size_says_only_the_class() {
        let home = gateway("home-1");
        let size = |bytes: usize| {
            home.key()
                .seal(&own(), &vec![b'x'; bytes])
                .expect("seals")
                .encode()
                .len()
        };
        assert_eq!(size(0), size(508));
        assert!(size(509) > size(508));
        assert!(
            size(CONTENT_BYTES_MAX) <= READING_BYTES_MAX,
            "{}",
            size(CONTENT_BYTES_MAX)
        );
        let more = vec![0; CONTENT_BYTES_MAX + 1];
        assert!(matches!(
            home.key().seal(&own(), &more),
            Err(SealError::TooLarge { .. })
        ));
        let key = SigningKey::random();
        assert_eq!(
            home.key()
                .seal(&own(), reading().sign(&key).as_bytes())
                .expect("seals")
                .encode()
                .len(),
            home.key()
                .seal(&own(), reading().sign_json(&key).as_bytes())
                .expect("seals")
                .encode()
                .len(),
            "a single value in either form"
        );
    }

    #[test]
    fn the_same_message_sealed_twice_shows_nothing_in_common_but_the_key() {
        let home = gateway("home-1");
        let seal = || home.key().seal(&own(), b"the same").expect("seals");
        let (first, second) = (seal(), seal());
        assert!(first.enc != second.enc && first.ciphertext != second.ciphertext);
        assert_eq!(home.open(&own(), &first), home.open(&own(), &second));
    }

    #[test]
    fn what_is_no_sealed_message_is_refused_with_its_reason() {
        let home = gateway("home-1");
        let good = home.key().seal(&own(), b"x").expect("seals");
        let changed = |change: fn(&mut SealedReading)| {
            let mut sealed = good.clone();
            change(&mut sealed);
            sealed.encode()
        };
        let mut giant = good.encode();
        giant.resize(READING_BYTES_MAX + 1, 0);
        let cases = [
            (giant, Reason::TooLarge),
            (vec![FIRST_BYTE], Reason::Malformed),
            (good.encode()[..good.encode().len() - 1].to_vec(), Reason::Malformed),
            ([good.encode(), vec![0]].concat(), Reason::Malformed),
            (changed(|sealed| sealed.v = VERSION + 1), Reason::Malformed),
            (changed(|sealed| sealed.enc.truncate(31)), Reason::Malformed),
            (changed(|sealed| sealed.ciphertext.truncate(527)), Reason::Malformed),
            (changed(|sealed| sealed.ciphertext.clear()), Reason::Malformed),
        ];
        for (message, reason) in cases {
            assert_eq!(
                SealedReading::receive(&message).expect_err("no such message").reason,
                reason
            );
        }
    }

    #[test]
    fn padding_that_hides_something_is_refused() {
        let home = gateway("home-1");
        for plaintext in [vec![1; 512], [&[0, 0, 0, 1, b'x'][..], &[9; 507]].concat()] {
            let key = HpkePublicKey(home.key().public.to_vec());
            let topic = own().name(&home.key().gateway);
            let sealed = SUITE.seal(&info(&home.key().id()), topic.as_bytes(), &plaintext, &key);
            let (enc, ciphertext) = sealed.expect("seals");
            let message = SealedReading {
                enc: ByteBuf::from(enc.0),
                ciphertext: ByteBuf::from(ciphertext),
                ..home.key().seal(&own(), b"x").expect("seals")
            };
            let refusal = home.open(&own(), &message).expect_err("not padded as it has to be");
            assert_eq!(refusal.reason, Reason::Malformed);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let home = gateway("home-1");
        assert!(!format!("{home:?}").contains(&hex::encode(home.secret_bytes())));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_opens(at: usize, bit in 0u8..8) {
            let home = gateway("home-1");
            let mut message = home.key().seal(&own(), reading().sign(&SigningKey::random()).as_bytes()).expect("seals").encode();
            let at = at % message.len();
            message[at] ^= 1 << bit;
            if let Ok(sealed) = SealedReading::receive(&message) {
                prop_assert!(sealed.key() != &home.key().id() || home.open(&own(), &sealed).is_err());
            }
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let _ = SealedReading::receive(&[&[FIRST_BYTE], &noise[..]].concat());
        }
    }
}

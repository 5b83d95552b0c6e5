//! All reading keys that one gateway holds: the one for new devices, and older ones that some device still seals to.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{ReadingKey, ReadingSecret, SealError, SealedReading};
use crate::{
    ids::{GatewayId, NetworkId, ReadingKeyId},
    reading::{Reason, Refusal},
    topic::Topic,
};

/// Version of the kept form.
const VERSION: u8 = 1;
/// Keys that are held at a time, at most.
pub const KEYS_MAX: usize = 8;

/// Why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Not the kept form. It says where, not what: the decoder's own words could repeat a part of a key.
    #[error("not what a gateway keeps its reading keys in (line {line})")]
    Malformed {
        /// Where.
        line: usize,
    },
    /// Another version, no key, or too many.
    #[error("reading keys must have version {VERSION} and be 1 to {KEYS_MAX}")]
    Unknown,
    /// A key is none.
    #[error("a reading key is none, or its halves do not belong together: {0}")]
    Key(#[from] SealError),
    /// Too many.
    #[error("{KEYS_MAX} reading keys are held already: drop one that no device seals to any more")]
    Full,
    /// Not one of those that can go.
    #[error("there is no such reading key besides the one that new devices are given")]
    Absent,
}

/// The form in which they are kept, for a file that nobody but the gateway can read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptKeys {
    v: u8,
    keys: Vec<KeptKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptKey {
    public: String,
    secret: String,
    made_ms: i64,
}

impl std::fmt::Debug for KeptKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeptKeys({} of them)", self.keys.len())
    }
}

impl Drop for KeptKey {
    fn drop(&mut self) {
        drop(Zeroizing::new(std::mem::take(&mut self.secret)));
    }
}

/// The keys of one gateway; there is always one. New devices are given the first.
#[derive(Clone, Debug)]
pub struct ReadingKeys {
    /// Each with when it was made, in milliseconds since 1970.
    keys: Vec<(ReadingSecret, i64)>,
}

impl ReadingKeys {
    /// One, made now.
    ///
    /// # Errors
    /// [`KeysError::Key`].
    pub fn generate(network: NetworkId, gateway: GatewayId, now_ms: i64) -> Result<Self, KeysError> {
        let first = ReadingSecret::generate(network, gateway)?;
        Ok(Self {
            keys: vec![(first, now_ms)],
        })
    }

    /// Reads the kept form, JSON.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn read(text: &str, (network, gateway): (NetworkId, &GatewayId)) -> Result<Self, KeysError> {
        let kept: KeptKeys = serde_json::from_str(text).map_err(|error| KeysError::Malformed { line: error.line() })?;
        if kept.v != VERSION || kept.keys.is_empty() || kept.keys.len() > KEYS_MAX {
            return Err(KeysError::Unknown);
        }
        let pair = |one: &KeptKey| {
            let key = ReadingKey::read(network, gateway.clone(), &one.public)?;
            let secret = hex::decode(&one.secret).map_err(|_| SealError::NotHex)?;
            Ok((ReadingSecret::of(key, Zeroizing::new(secret))?, one.made_ms))
        };
        let keys: Result<_, SealError> = kept.keys.iter().map(pair).collect();
        Ok(Self { keys: keys? })
    }

    /// The form in which they are kept.
    #[must_use]
    pub fn kept(&self) -> KeptKeys {
        let key = |(secret, made_ms): &(ReadingSecret, i64)| KeptKey {
            public: secret.key().public(),
            secret: hex::encode(secret.secret_bytes()),
            made_ms: *made_ms,
        };
        KeptKeys {
            v: VERSION,
            keys: self.keys.iter().map(key).collect(),
        }
    }

    /// With another one for new devices; those that were there before still open.
    ///
    /// # Errors
    /// [`KeysError::Full`] or [`KeysError::Key`].
    pub fn renewed(&self, now_ms: i64) -> Result<Self, KeysError> {
        if self.keys.len() >= KEYS_MAX {
            return Err(KeysError::Full);
        }
        let ReadingKey { network, gateway, .. } = self.current().clone();
        let mut renewed = Self::generate(network, gateway, now_ms)?;
        renewed.keys.extend(self.keys.iter().cloned());
        Ok(renewed)
    }

    /// Without an older one: what is sealed to it cannot be opened any more, by anybody.
    ///
    /// # Errors
    /// [`KeysError::Absent`].
    pub fn without(&self, id: ReadingKeyId) -> Result<Self, KeysError> {
        let (current, others) = self.keys.split_first().expect("there is always one");
        let mut keys = vec![current.clone()];
        keys.extend(others.iter().filter(|(secret, _)| secret.key().id() != id).cloned());
        if keys.len() == self.keys.len() {
            return Err(KeysError::Absent);
        }
        Ok(Self { keys })
    }

    /// The key that new devices are given.
    #[must_use]
    pub fn current(&self) -> &ReadingKey {
        let (current, _) = self.keys.first().expect("there is always one");
        current.key()
    }

    /// All of them, the one for new devices first, with when each was made.
    pub fn all(&self) -> impl Iterator<Item = (&ReadingKey, i64)> {
        self.keys.iter().map(|(secret, made_ms)| (secret.key(), *made_ms))
    }

    /// Opens what came under a topic with the key that it names.
    ///
    /// # Errors
    /// [`Reason::NotOpened`] or [`Reason::Malformed`].
    pub fn open(&self, topic: &Topic, sealed: &SealedReading) -> Result<Vec<u8>, Refusal> {
        let mut secrets = self.keys.iter().map(|(secret, _)| secret);
        let secret = secrets.find(|secret| secret.key().id() == sealed.key).ok_or_else(|| {
            let detail = "it is sealed to a key that this gateway does not have, or not any more; its /status shows those that \
                          it has, and the network and the gateway that each is for";
            Refusal::new(Reason::NotOpened, detail)
        })?;
        secret.open(topic, sealed)
    }
}

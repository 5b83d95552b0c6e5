//! Names: devices, gateways, organisations, subjects, boots; none of them says who a person is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::canonical::Digest;

/// A name that is not of the allowed form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} must be 1 to 64 characters of a-z, 0-9 and '-'")]
pub struct BadName {
    what: &'static str,
    text: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
                    Ok(Self(text))
                } else {
                    Err(BadName { what: $what, text: text.chars().take(80).collect() })
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A home device; opaque, it is part of MQTT topics.
    DeviceId,
    "device id"
);
name!(
    /// An edge gateway; opaque, it is part of MQTT topics.
    GatewayId,
    "gateway id"
);
name!(
    /// A member of the network: a hospital, an insurer, a supplier.
    OrganizationId,
    "organization id"
);

/// A person, as a random pseudonym. It is the FHIR logical id of the Patient and never on the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubjectId(Uuid);

impl SubjectId {
    /// A pseudonym that nobody has yet.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for SubjectId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

impl fmt::Display for SubjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.parse().map(Self)
            }
        }
    };
}

identifier!(
    /// A network: the digest of its genesis document.
    NetworkId
);
identifier!(
    /// A subject key: the digest of its public half. The link to the person is known to holders only.
    KeyId
);
identifier!(
    /// A gateway's reading key: the digest of its public half, its network and its gateway.
    ReadingKeyId
);
identifier!(
    /// What a commitment is to: of a sealed bundle the digest of its bytes, of a sealed document the digest of its root's CID.
    BundleId
);

/// One start of a device: a persisted counter, and random bits in case the counter was lost. Text: `7-00c0ffee00c0ffee`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId {
    /// How often the device has started.
    pub counter: u32,
    /// Drawn anew at each start.
    pub random: u64,
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.counter, self.random)
    }
}

impl FromStr for BootId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let boot = text.split_once('-').and_then(|(counter, random)| {
            Some(Self {
                counter: counter.parse().ok()?,
                random: u64::from_str_radix(random, 16).ok()?,
            })
        });
        // One text per boot: anything that prints differently is refused.
        boot.filter(|b| b.to_string() == text).ok_or_else(|| {
            format!(
                "boot id {:?} must be a counter, '-' and 16 lower-case hex digits",
                text.chars().take(80).collect::<String>()
            )
        })
    }
}

impl TryFrom<String> for BootId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> Self {
        boot.to_string()
    }
}

/// What makes a reading unique: which device, which start of it, which message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReadingId {
    /// The device.
    pub device: DeviceId,
    /// Its start.
    pub boot: BootId,
    /// The message, from 1, without gaps.
    pub seq: u64,
}

impl fmt::Display for ReadingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.device, self.boot, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_topic() {
        for bad in ["", "a/b", "+", "#", "A", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
        assert_eq!("oximeter-1".parse::<DeviceId>().expect("good").as_str(), "oximeter-1");
    }

    #[test]
    fn a_boot_id_has_one_text() {
        let boot = BootId {
            counter: 7,
            random: 0xC0FFEE,
        };
        assert_eq!(boot.to_string().parse(), Ok(boot));
        assert!("07-0000000000c0ffee".parse::<BootId>().is_err());
        assert!("7-C0FFEE".parse::<BootId>().is_err());
    }
}

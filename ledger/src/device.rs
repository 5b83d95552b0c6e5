//! A device's keys, one after the other, and which of them counts for which reading: what was final stays so.
//!
//! A key ends with the block that replaces it or revokes its device. What is committed up to that block counts, whatever comes
//! later. Above it counts only what the gateway *received* in time: it acknowledged that reading when it could not know
//! better, and an acknowledged reading is not lost (decision 13). For the same reason nothing asks where a key *begins*: a
//! device that came by a code measures before its operator approves it, and what it measured counts once the key is here.

use std::{cell::Cell, collections::BTreeMap};

use record::{
    ids::{DeviceId, GatewayId, NetworkId},
    reading::{Reading, Reason, Refusal, SignedReading},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    block::Height,
    refused::Refused,
    transaction::{DeviceEnrolment, Rotation},
};

/// A gateway learns within this time that a key has ended, and its clock is not further behind the blocks', in milliseconds.
pub const END_GRACE_MS: u64 = 120_000;
/// An old key counts this long beside its successor, at most, in milliseconds: 30 days.
pub const OVERLAP_MS_MAX: u64 = 30 * 86_400_000;
/// Devices in one [`Roll`] after which it ends with the height that they were changed at.
pub const ROLL_DEVICES_ENOUGH: usize = 1_000;
/// More bytes than a [`Roll`] has as JSON: a block has some thousand enrolments, at most.
pub const ROLL_BYTES_MAX: usize = 16 << 20;
/// Keys of one device, all in all: each check of a forged message tries them.
pub const KEYS_MAX: usize = 32;

/// A block, and the time that it carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// Its height.
    pub height: Height,
    /// Its time, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Where a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// What is committed up to this height counts.
    pub height: Height,
    /// Above it, what the gateway received up to this time, in milliseconds since 1970.
    pub received_until_ms: u64,
}

impl End {
    fn after(at: Moment, overlap_ms: u64) -> Self {
        Self {
            height: at.height,
            received_until_ms: at.at_ms.saturating_add(overlap_ms).saturating_add(END_GRACE_MS),
        }
    }

    /// Whether something that is not committed yet still counts, by the time at which the gateway received it.
    #[must_use]
    pub fn covers(&self, received_ms: i64) -> bool {
        u64::try_from(received_ms).is_ok_and(|received_ms| received_ms <= self.received_until_ms)
    }
}

/// A key and how long it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPeriod {
    /// The key.
    pub key: PublicKey,
    /// The block that brought it: what orders a device's changes, and no bound for what the key signed.
    pub from: Moment,
    /// Where it ends, if it does.
    pub until: Option<End>,
}

/// A device as the chain knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The gateway it reports to.
    pub gateway: GatewayId,
    /// Its keys, the oldest first; there is one at least.
    keys: Vec<KeyPeriod>,
    /// Since when it is revoked; for good.
    pub revoked: Option<Moment>,
}

/// How a message came to be final.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The gateway that committed it: the device must report to it. `None` if that was checked before.
    pub author: Option<&'a GatewayId>,
    /// The height at which it is committed.
    pub committed: Height,
    /// When the gateway received it, in milliseconds since 1970.
    pub received_ms: i64,
}

impl Arrival<'_> {
    pub(crate) fn is_before(&self, end: &End) -> bool {
        self.committed <= end.height || end.covers(self.received_ms)
    }
}

/// What a fog node tells a gateway of its devices: those that were changed above the height that it asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roll {
    /// All changes up to this height are here; what is above has to be asked for.
    pub through: Height,
    /// Since when the gateway itself is revoked.
    pub revoked: Option<Moment>,
    /// The devices.
    pub devices: BTreeMap<DeviceId, Device>,
}

impl Device {
    /// A device that the chain does not know (yet), with the key that its gateway was told.
    #[must_use]
    pub fn unregistered(gateway: GatewayId, key: PublicKey) -> Self {
        let first = KeyPeriod {
            key,
            from: Moment::default(),
            until: None,
        };
        Self {
            gateway,
            keys: vec![first],
            revoked: None,
        }
    }

    pub(crate) fn enrolled(enrolment: &DeviceEnrolment, at: Moment) -> Self {
        let mut device = Self::unregistered(enrolment.gateway.clone(), enrolment.key);
        for period in &mut device.keys {
            period.from = at;
        }
        device
    }

    /// Its keys, the oldest first.
    #[must_use]
    pub fn keys(&self) -> &[KeyPeriod] {
        &self.keys
    }

    /// The height of its last change.
    #[must_use]
    pub fn changed(&self) -> Height {
        let brought = self.keys.last().map(|period| period.from.height);
        let revoked = self.revoked.map(|moment| moment.height);
        brought.max(revoked).unwrap_or_default()
    }

    /// Where all of it ends, if it is revoked.
    fn end(&self) -> Option<End> {
        self.revoked.map(|at| End::after(at, 0))
    }

    pub(crate) fn may_rotate(&self, network: &NetworkId, rotation: &Rotation) -> Result<(), Refused> {
        let present = self.keys.last().map(|period| period.key);
        if !rotation
            .proof
            .holds(network, (&self.gateway, &rotation.device), &rotation.to)
        {
            return Err(Refused::NotPossessed);
        }
        if present != Some(rotation.from) || self.keys.iter().any(|period| period.key == rotation.to) {
            return Err(Refused::Stale);
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(Refused::TooMany);
        }
        Ok(())
    }

    pub(crate) fn rotate(&mut self, rotation: &Rotation, at: Moment) {
        if let Some(present) = self.keys.last_mut() {
            present.until = Some(End::after(at, rotation.overlap_ms.min(OVERLAP_MS_MAX)));
        }
        self.keys.push(KeyPeriod {
            key: rotation.to,
            from: at,
            until: None,
        });
    }

    pub(crate) fn revoke(&mut self, at: Moment) {
        // Its keys keep their own ends, so that what counted in an overlap counts still: this end is tried beside them.
        self.revoked = Some(at);
    }
}

/// The reading in a message: decoded with the key of its device that signed it, the newest tried first, if that key has not
/// ended for it. It may have been committed or received before the key began (decision 13): the height of a commitment and
/// the time of receipt are the gateway's word, so a bound would keep out nobody who could not write around it.
///
/// # Errors
/// As [`SignedReading::decode`], and [`Reason::Revoked`].
pub fn authenticate<'a>(
    signed: &SignedReading,
    device_of: impl Fn(&DeviceId) -> Option<&'a Device>,
    is_before: impl Fn(&End) -> bool,
) -> Result<Reading, Refusal> {
    let mut refused = None;
    for nth in 0..KEYS_MAX {
        let tried: Cell<Option<&KeyPeriod>> = Cell::new(None);
        let key_of = |id: &DeviceId| {
            let period = device_of(id)?.keys.iter().rev().nth(nth)?;
            tried.set(Some(period));
            Some(period.key)
        };
        match (signed.decode(key_of), tried.get()) {
            (Ok(reading), Some(period)) => {
                let revoked = device_of(&reading.device).and_then(Device::end);
                let is_out = [period.until, revoked].iter().flatten().any(|end| !is_before(end));
                return if is_out {
                    Err(ended(&reading.device))
                } else {
                    Ok(reading)
                };
            }
            (Err(refusal), Some(_)) if refusal.reason == Reason::WrongSignature => refused = Some(refusal),
            (result, Some(_)) => return result,
            // It has no further key: what the newest said is what there is to say.
            (result, None) => return refused.map_or(result, Err),
        }
    }
    Err(refused.unwrap_or_else(|| Refusal::new(Reason::WrongSignature, "no key of the device signed it")))
}

/// What is said of a device, or of a key of it, that is out of use.
#[must_use]
pub fn ended(device: &DeviceId) -> Refusal {
    let detail =
        format!("device {device}, or the key that it signed with, is out of use; its operator revoked or replaced it");
    Refusal::new(Reason::Revoked, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::possession::Possession;
    use record::{
        canonical::Digest,
        decimal::Decimal,
        ids::BootId,
        reading::{Measured, MeasurementState, TimeQuality, VERSION},
        signature::SigningKey,
    };

    const BLOCK: Moment = Moment {
        height: Height(10),
        at_ms: 1_000_000,
    };

    fn network() -> NetworkId {
        NetworkId(Digest::ZERO)
    }

    fn cuff() -> DeviceId {
        "cuff-1".parse().expect("good")
    }

    fn enrolled(key: &SigningKey) -> Device {
        let at = Moment {
            height: Height(2),
            at_ms: 1,
        };
        let place = ("home-1".parse().expect("good"), cuff());
        Device::enrolled(&DeviceEnrolment::of(&network(), place, key), at)
    }

    fn rotation(device: &Device, from: &SigningKey, to: &SigningKey) -> Rotation {
        Rotation {
            device: cuff(),
            from: from.public(),
            to: to.public(),
            proof: Possession::prove(&network(), (&device.gateway, &cuff()), to),
            overlap_ms: 5_000,
        }
    }

    fn message(key: &SigningKey) -> SignedReading {
        let measured = Measured {
            code: "8867-4".to_owned(),
            value: Some(Decimal::whole(70)),
            unit: "/min".to_owned(),
            state: MeasurementState::Valid,
            samples: None,
        };
        let reading = Reading {
            v: VERSION,
            device: cuff(),
            boot: BootId { counter: 1, random: 2 },
            seq: 1,
            up_ms: 1,
            wall: None,
            time_quality: TimeQuality::Unknown,
            observations: vec![measured],
        };
        reading.sign(key)
    }

    /// What is said of a message of this key that was committed at a height and received at a time.
    fn said(device: &Device, key: &SigningKey, committed: u64, received_ms: i64) -> Option<Reason> {
        let arrival = Arrival {
            author: None,
            committed: Height(committed),
            received_ms,
        };
        authenticate(&message(key), |_| Some(device), |end| arrival.is_before(end))
            .err()
            .map(|refusal| refusal.reason)
    }

    #[test]
    fn what_was_final_before_a_revocation_counts_and_what_came_after_it_does_not() {
        let key = SigningKey::random();
        let mut device = enrolled(&key);
        device.revoke(BLOCK);
        let late = 1_000_000 + i64::try_from(END_GRACE_MS).expect("small") + 1;
        assert_eq!(said(&device, &key, 9, late), None, "history");
        assert_eq!(said(&device, &key, 10, late), None, "the same block");
        assert_eq!(said(&device, &key, 11, late), Some(Reason::Revoked));
        assert_eq!(
            said(&device, &key, 11, late - 1),
            None,
            "acknowledged before it was known"
        );
        assert_eq!(
            said(&device, &key, 11, -1),
            Some(Reason::Revoked),
            "no time before 1970"
        );
        assert_eq!(device.changed(), Height(10));
    }

    #[test]
    fn what_was_measured_before_a_key_was_approved_counts() {
        let (first, second) = (SigningKey::random(), SigningKey::random());
        let mut device = enrolled(&first);
        let rotation = rotation(&device, &first, &second);
        device.rotate(&rotation, BLOCK);
        let begins = |nth: usize| device.keys()[nth].from;
        for (key, from) in [(&first, begins(0)), (&second, begins(1))] {
            assert_eq!(
                said(&device, key, from.height.0 - 1, 0),
                None,
                "committed and received before"
            );
        }
        device.revoke(Moment {
            height: Height(11),
            at_ms: 2_000_000,
        });
        let late = 2_000_000 + i64::try_from(END_GRACE_MS).expect("small") + 1;
        assert_eq!(said(&device, &second, 12, late), Some(Reason::Revoked), "its end holds");
    }

    #[test]
    fn the_old_key_counts_beside_its_successor_for_as_long_as_was_said() {
        let (old, new) = (SigningKey::random(), SigningKey::random());
        let mut device = enrolled(&old);
        let turned = rotation(&device, &old, &new);
        assert_eq!(device.may_rotate(&network(), &turned), Ok(()));
        device.rotate(&turned, BLOCK);
        let end = 1_000_000 + 5_000 + i64::try_from(END_GRACE_MS).expect("small");
        assert_eq!(said(&device, &new, 11, end + 1), None);
        assert_eq!(said(&device, &old, 11, end), None);
        assert_eq!(said(&device, &old, 11, end + 1), Some(Reason::Revoked));
        assert_eq!(said(&device, &old, 9, end + 1), None, "history");
        assert_eq!(said(&device, &SigningKey::random(), 9, 0), Some(Reason::WrongSignature));
        assert_eq!(device.may_rotate(&network(), &turned), Err(Refused::Stale), "held back");
        let back = rotation(&device, &new, &old);
        assert_eq!(device.may_rotate(&network(), &back), Err(Refused::Stale), "an old key");
        device.revoke(Moment {
            height: Height(11),
            at_ms: 1_000_001,
        });
        assert_eq!(
            said(&device, &old, 12, end),
            Some(Reason::Revoked),
            "the overlap ends, too"
        );
        let after_grace = 1_000_001 + i64::try_from(END_GRACE_MS).expect("small") + 1;
        assert!(
            after_grace <= end,
            "received in the overlap, and not in the grace of the revocation"
        );
        assert_eq!(
            said(&device, &old, 11, after_grace),
            None,
            "final before the revocation: history"
        );
        assert_eq!(said(&device, &old, 9, end), None);
    }

    #[test]
    fn a_key_that_does_not_prove_itself_succeeds_nobody_and_keys_are_bounded() {
        let (old, new) = (SigningKey::random(), SigningKey::random());
        let mut device = enrolled(&old);
        let stolen = Rotation {
            to: SigningKey::random().public(),
            ..rotation(&device, &old, &new)
        };
        assert_eq!(device.may_rotate(&network(), &stolen), Err(Refused::NotPossessed));
        let mut present = old;
        for _ in 1..KEYS_MAX {
            let next = SigningKey::random();
            let turned = rotation(&device, &present, &next);
            assert_eq!(device.may_rotate(&network(), &turned), Ok(()));
            device.rotate(&turned, BLOCK);
            present = next;
        }
        let one_more = rotation(&device, &present, &new);
        assert_eq!(device.may_rotate(&network(), &one_more), Err(Refused::TooMany));
    }
}

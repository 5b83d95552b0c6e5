//! What an organisation decides about its own gateways and devices: enrol, give another key, take out.

use std::collections::BTreeMap;

use ledger::{
    block::Height,
    device::{Device, Roll},
    transaction::{Action, DeviceEnrolment, Rotation},
};
use record::{
    ids::{DeviceId, GatewayId},
    signature::PublicKey,
};

use crate::decision::{Desk, Error};

/// What is done about a device that has another key than the one that is asked for, on the chain or in the same list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: it is said, and the rest goes on.
    Leave,
    /// It gets the key that was asked for; the old one counts beside it for so many milliseconds.
    Rotate {
        /// How long.
        overlap_ms: u64,
    },
}

/// Approves what devices asked for at a gateway: an enrolment, or another key. Gives a line for each.
///
/// # Errors
/// [`Error`]; what was approved before it stays approved, and can be approved again.
pub async fn approve(desk: &Desk<'_>, requests: Vec<DeviceEnrolment>, known: Known) -> Result<String, Error> {
    let mut registers: BTreeMap<GatewayId, BTreeMap<DeviceId, Registered>> = BTreeMap::new();
    let mut asked: BTreeMap<(GatewayId, DeviceId), usize> = BTreeMap::new();
    for request in &requests {
        let place = (request.gateway.clone(), request.device.clone());
        *asked.entry(place).or_default() += 1;
    }
    let mut lines = Vec::new();
    for request in requests {
        let (gateway, device, key) = (request.gateway.clone(), request.device.clone(), request.key);
        if !registers.contains_key(&gateway) {
            registers.insert(gateway.clone(), register(desk, &gateway).await?);
        }
        let registered = registers.get(&gateway).and_then(|devices| devices.get(&device));
        let asked = asked.get(&(gateway.clone(), device.clone())).copied().unwrap_or(1);
        match judge(registered, (request, asked), known) {
            Err(why) => lines.push(format!("{device}: {why}")),
            Ok(action) => {
                let kind = action.kind();
                lines.push(format!("{device}: {kind} {}", desk.decide(action).await?));
                // The next request may be for the same device, and follows this key.
                let devices = registers.entry(gateway).or_default();
                devices.entry(device).or_default().keys.push(key);
            }
        }
    }
    Ok(lines.join("\n"))
}

/// What the chain has of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registered {
    /// Its keys, the present one last.
    keys: Vec<PublicKey>,
    is_revoked: bool,
}

impl From<Device> for Registered {
    fn from(device: Device) -> Self {
        Self {
            keys: device.keys().iter().map(|period| period.key).collect(),
            is_revoked: device.revoked.is_some(),
        }
    }
}

/// What is decided about a request, of so many for its device in the list; or why nothing is.
fn judge(
    registered: Option<&Registered>,
    (request, asked): (DeviceEnrolment, usize),
    known: Known,
) -> Result<Action, &'static str> {
    let Some(registered) = registered else {
        // To enrol the first of them would leave the device without the key that it has now.
        if asked > 1 && known == Known::Leave {
            return Err(
                "asks with MORE THAN ONE KEY; --rotate gives it one after the other. If one was presented by somebody \
                 else, take it out of the list",
            );
        }
        return Ok(Action::EnrolDevice(request));
    };
    if registered.is_revoked {
        return Err("is REVOKED, for good; nothing is done. Give the device another name and a code for that");
    }
    match (registered.keys.last().copied(), known) {
        (Some(present), _) if present == request.key => Err("is enrolled with this key"),
        _ if registered.keys.contains(&request.key) => {
            Err("had this key BEFORE, and keys do not come back; it has to present another one")
        }
        (None, _) => Ok(Action::EnrolDevice(request)),
        (Some(_), Known::Leave) => Err("has ANOTHER KEY on the chain; --rotate gives it this one"),
        (Some(from), Known::Rotate { overlap_ms }) => Ok(Action::RotateDevice(Rotation {
            device: request.device,
            from,
            to: request.key,
            proof: request.proof,
            overlap_ms,
        })),
    }
}

/// What the chain has of each device of a gateway.
async fn register(desk: &Desk<'_>, gateway: &GatewayId) -> Result<BTreeMap<DeviceId, Registered>, Error> {
    let (mut devices, mut above) = (BTreeMap::new(), Height(0));
    loop {
        let path = format!("/api/v1/gateways/{gateway}/devices?above={above}");
        let roll: Roll = desk.ask(&path).await?;
        let told = roll.devices.into_iter();
        devices.extend(told.map(|(id, device)| (id, Registered::from(device))));
        if roll.through <= above {
            return Ok(devices);
        }
        above = roll.through;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{canonical::Digest, ids::NetworkId, signature::SigningKey};

    const ROTATE: Known = Known::Rotate { overlap_ms: 7 };

    fn request(key: &SigningKey) -> DeviceEnrolment {
        let place = ("home-1".parse().expect("good"), "cuff-1".parse().expect("good"));
        DeviceEnrolment::of(&NetworkId(Digest::ZERO), place, key)
    }

    fn registered(keys: &[&SigningKey], is_revoked: bool) -> Registered {
        Registered {
            keys: keys.iter().map(|key| key.public()).collect(),
            is_revoked,
        }
    }

    fn says(judged: &Result<Action, &'static str>, what: &str) -> bool {
        judged.as_ref().is_err_and(|why| why.contains(what))
    }

    #[test]
    fn a_revoked_device_is_said_to_be_revoked_whichever_key_it_asks_with() {
        let [old, present, new] = [1, 2, 3].map(|_| SigningKey::random());
        let revoked = registered(&[&old, &present], true);
        for key in [&old, &present, &new] {
            for known in [Known::Leave, ROTATE] {
                let judged = judge(Some(&revoked), (request(key), 1), known);
                assert!(says(&judged, "REVOKED"), "{judged:?}");
            }
        }
    }

    #[test]
    fn a_key_follows_the_present_one_only_when_that_is_wanted_and_none_comes_back() {
        let [old, present, new] = [1, 2, 3].map(|_| SigningKey::random());
        let device = registered(&[&old, &present], false);
        let judged = |key: &SigningKey, known| judge(Some(&device), (request(key), 1), known);
        assert!(says(&judged(&present, ROTATE), "is enrolled"));
        assert!(says(&judged(&old, ROTATE), "had this key BEFORE"));
        assert!(says(&judged(&new, Known::Leave), "ANOTHER KEY"));
        let Ok(Action::RotateDevice(rotation)) = judged(&new, ROTATE) else {
            panic!("{:?}", judged(&new, ROTATE));
        };
        assert_eq!((rotation.from, rotation.to), (present.public(), new.public()));
        assert_eq!(rotation.overlap_ms, 7);
    }

    #[test]
    fn a_new_device_with_several_keys_gets_them_in_their_order_or_none() {
        let key = SigningKey::random();
        assert!(says(
            &judge(None, (request(&key), 2), Known::Leave),
            "MORE THAN ONE KEY"
        ));
        for (asked, known) in [(1, Known::Leave), (2, ROTATE)] {
            let judged = judge(None, (request(&key), asked), known);
            assert!(matches!(judged, Ok(Action::EnrolDevice(_))), "{judged:?}");
        }
    }
}

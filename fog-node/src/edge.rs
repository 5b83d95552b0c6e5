//! What an organisation decides about its own gateways and devices: enrol, give another key, take out.

use std::collections::BTreeMap;

use ledger::{
    block::Height,
    device::Roll,
    transaction::{Action, DeviceEnrolment, Rotation},
};
use record::{
    ids::{DeviceId, GatewayId},
    signature::PublicKey,
};

use crate::decision::{Desk, Error};

/// What is done about a device that the chain knows with another key.
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
    let mut keys: BTreeMap<GatewayId, BTreeMap<DeviceId, PublicKey>> = BTreeMap::new();
    let mut lines = Vec::new();
    for request in requests {
        if !keys.contains_key(&request.gateway) {
            keys.insert(request.gateway.clone(), present(desk, &request.gateway).await?);
        }
        let present = keys
            .get(&request.gateway)
            .and_then(|keys| keys.get(&request.device))
            .copied();
        let device = request.device.clone();
        let action = match (present, known) {
            (Some(key), _) if key == request.key => {
                lines.push(format!("{device}: is enrolled with this key"));
                continue;
            }
            (Some(_), Known::Leave) => {
                lines.push(format!(
                    "{device}: has ANOTHER KEY on the chain; --rotate gives it this one"
                ));
                continue;
            }
            (Some(from), Known::Rotate { overlap_ms }) => Action::RotateDevice(Rotation {
                device: request.device,
                from,
                to: request.key,
                proof: request.proof,
                overlap_ms,
            }),
            (None, _) => Action::EnrolDevice(request),
        };
        let kind = action.kind();
        lines.push(format!("{device}: {kind} {}", desk.decide(action).await?));
    }
    Ok(lines.join("\n"))
}

/// The present key of each device of a gateway.
async fn present(desk: &Desk<'_>, gateway: &GatewayId) -> Result<BTreeMap<DeviceId, PublicKey>, Error> {
    let (mut keys, mut above) = (BTreeMap::new(), Height(0));
    loop {
        let path = format!("/api/v1/gateways/{gateway}/devices?above={above}");
        let roll: Roll = desk.ask(&path).await?;
        let newest = |device: &ledger::device::Device| device.keys().last().map(|period| period.key);
        let told = roll.devices.into_iter();
        keys.extend(told.filter_map(|(id, device)| Some((id, newest(&device)?))));
        if roll.through <= above {
            return Ok(keys);
        }
        above = roll.through;
    }
}

//! The edge in the register: gateways and their devices, who may change them, and whose signature counts.

use std::collections::BTreeMap;

use record::{
    canonical::Digest,
    ids::{DeviceId, GatewayId, OrganizationId},
    reading::{Reading, Refusal, SignedReading},
};

use super::{Gateway, Refused, Register};
use crate::{
    block::Height,
    device::{self, Arrival, Device, Moment, ROLL_DEVICES_ENOUGH, Roll},
    transaction::DeviceEnrolment,
};

impl Register {
    /// Whether an organisation operates a gateway that is not revoked.
    pub(super) fn operated(&self, author: &OrganizationId, id: &GatewayId) -> Result<(), Refused> {
        let gateway = self.gateways.get(id).ok_or(Refused::UnknownName)?;
        match gateway.revoked {
            _ if gateway.operator != *author => Err(Refused::NotAllowed),
            Some(_) => Err(Refused::Revoked),
            None => Ok(()),
        }
    }

    /// A device that is not revoked, if its gateway's operator asks.
    pub(super) fn device_of(&self, author: &OrganizationId, id: &DeviceId) -> Result<&Device, Refused> {
        let device = self.devices.get(id).ok_or(Refused::UnknownName)?;
        let operator = self.gateways.get(&device.gateway).map(|gateway| &gateway.operator);
        match device.revoked {
            _ if operator != Some(author) => Err(Refused::NotAllowed),
            Some(_) => Err(Refused::Revoked),
            None => Ok(device),
        }
    }

    pub(super) fn enrol(&mut self, enrolment: &DeviceEnrolment, at: Moment) {
        self.devices
            .insert(enrolment.device.clone(), Device::enrolled(enrolment, at));
        self.note_change(&enrolment.gateway, at);
    }

    pub(super) fn change_device(&mut self, id: &DeviceId, at: Moment, change: impl FnOnce(&mut Device)) {
        if let Some(device) = self.devices.get_mut(id) {
            change(device);
            let gateway = device.gateway.clone();
            self.note_change(&gateway, at);
        }
    }

    fn note_change(&mut self, id: &GatewayId, at: Moment) {
        if let Some(gateway) = self.gateways.get_mut(id) {
            gateway.changed = at.height;
        }
    }

    /// The enrolled gateway whose TLS key this is, unless it was revoked.
    #[must_use]
    pub fn gateway_with_tls(&self, tls: &Digest) -> Option<&Gateway> {
        let mut all = self.gateways.values();
        all.find(|g| g.enrolment.tls == *tls && g.revoked.is_none())
    }

    /// An enrolled gateway, also one that was revoked.
    #[must_use]
    pub fn gateway(&self, id: &GatewayId) -> Option<&Gateway> {
        self.gateways.get(id)
    }

    /// What a gateway has to know of its devices that was changed above a height. Of a gateway that nobody enrolled there is
    /// nothing to tell.
    #[must_use]
    pub fn roll(&self, id: &GatewayId, above: Height) -> Roll {
        let (through, revoked) = self.gateways.get(id).map_or((above, None), |g| (g.changed, g.revoked));
        let mut roll = Roll {
            through: through.max(above),
            revoked,
            devices: BTreeMap::new(),
        };
        if roll.through == above {
            return roll;
        }
        let is_news = |(_, device): &(&DeviceId, &Device)| device.gateway == *id && device.changed() > above;
        let mut news: Vec<_> = self.devices.iter().filter(is_news).collect();
        news.sort_by_key(|(_, device)| device.changed());
        if let Some((_, last)) = news.get(ROLL_DEVICES_ENOUGH - 1) {
            roll.through = last.changed();
        }
        let told = news
            .into_iter()
            .take_while(|(_, device)| device.changed() <= roll.through);
        roll.devices = told.map(|(id, device)| (id.clone(), device.clone())).collect();
        roll
    }

    /// An enrolled device, also one that was revoked.
    #[must_use]
    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// The reading in a message that became final: signed by a key of its device that counted for it then.
    ///
    /// # Errors
    /// As [`SignedReading::decode`], and [`Reason::Revoked`](record::reading::Reason::Revoked).
    pub fn reading(&self, signed: &SignedReading, arrival: &Arrival<'_>) -> Result<Reading, Refusal> {
        let reports = |device: &&Device| arrival.author.is_none_or(|author| device.gateway == *author);
        device::authenticate(
            signed,
            |id| self.devices.get(id).filter(reports),
            |end| arrival.is_before(end),
        )
    }
}

//! The edge as the benchmark plays it: devices that sign, and an enrolled gateway that seals and commits.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use ledger::admission::MatchedSubmission;
use record::{
    bundle::{Bundle, Entry, SubjectKey},
    decimal::Decimal,
    ids::{BootId, BundleId, DeviceId, GatewayId, NetworkId, SubjectId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};

use crate::{
    fault::Fault,
    household::{Device, Household},
    network::Network,
};

/// A bundle as a gateway keeps it until it is final.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) id: BundleId,
    pub(super) submission: Vec<u8>,
}

/// All devices, and the gateway.
#[derive(Debug)]
pub(super) struct Edge {
    network: NetworkId,
    gateway: GatewayId,
    key: SigningKey,
    wearables: Vec<Wearable>,
    turn: AtomicU64,
}

/// A device that measures a heart rate.
#[derive(Debug)]
struct Wearable {
    id: DeviceId,
    key: SigningKey,
    patient: SubjectId,
    subject: SubjectKey,
    boot: BootId,
    last_seq: AtomicU64,
}

impl Edge {
    /// Whom the first device measures: the first bundle of every history is theirs.
    pub(super) fn first_patient(&self) -> SubjectId {
        self.wearables[0].patient
    }

    /// The edge of a network: its gateway and all of its devices.
    pub(super) fn of(network: &Network) -> Result<Self, Fault> {
        let household = &network.household;
        let wearables = household.devices.iter().map(|device| wearable(device, household));
        Ok(Self {
            network: network.id(),
            gateway: network.gateway.enrolment.gateway.clone(),
            key: network.gateway.key.clone(),
            wearables: wearables.collect::<Result<_, _>>()?,
            turn: AtomicU64::new(0),
        })
    }

    /// Signs this many readings of one device, seals them and commits to them; another device each time.
    pub(super) fn seal(&self, readings: u32) -> Result<Ready, Fault> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = usize::try_from(turn % self.wearables.len() as u64).expect("smaller than the number of devices");
        let (wearable, now_ms) = (&self.wearables[at], jiff::Timestamp::now().as_millisecond());
        let entries = (0..readings).map(|_| wearable.measure(now_ms)).collect();
        let author = (&self.network, &self.gateway, &self.key);
        let sealed = (&wearable.subject, &Bundle::new(entries));
        let submission = MatchedSubmission::seal(author, sealed, now_ms).map_err(Fault::identity("a sealed bundle"))?;
        Ok(Ready {
            id: submission.commitment().bundle,
            submission: submission.encode(),
        })
    }
}

fn wearable(device: &Device, household: &Household) -> Result<Wearable, Fault> {
    let pem = fs::read_to_string(&device.key_file).map_err(Fault::file(&device.key_file))?;
    let person = household.person_of(device);
    Ok(Wearable {
        id: device.id.clone(),
        key: SigningKey::from_pem(&pem).map_err(Fault::identity("a device's key"))?,
        patient: person.patient.id,
        subject: person.key.clone(),
        boot: BootId {
            counter: 1,
            random: rand::random(),
        },
        last_seq: AtomicU64::new(0),
    })
}

/// What the reading of this number says: a heart rate between 60 and 99.
pub(super) fn heart_rate(seq: u64) -> Measured {
    Measured {
        code: "8867-4".to_owned(),
        value: Some(Decimal::whole(60 + i64::try_from(seq % 40).expect("below 40"))),
        samples: None,
        unit: "/min".to_owned(),
        state: MeasurementState::Valid,
    }
}

impl Wearable {
    fn measure(&self, now_ms: i64) -> Entry {
        let seq = self.last_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let reading = Reading {
            v: VERSION,
            device: self.id.clone(),
            boot: self.boot,
            seq,
            up_ms: seq * 1_000,
            wall: Some(now_ms),
            time_quality: TimeQuality::Synced,
            observations: vec![heart_rate(seq)],
        };
        Entry::new(now_ms, reading.sign(&self.key))
    }
}

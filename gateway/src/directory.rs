//! Which device measures whom, as of now: what the home listed, what was claimed, who is assigned, and over it what the chain
//! says. It changes while the gateway runs; a message is judged by one state of it.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use ledger::device::{self, Device};
use record::{
    bundle::SubjectKey,
    ids::{DeviceId, GatewayId, NetworkId},
    reading::{Reading, Reason, Refusal, SignedReading, TimeQuality},
};
use tokio::sync::{Mutex, watch};

use crate::{
    assignment::Assignments,
    claim::{self, Claim, ClaimId, Claims, Evidence},
    enrolment::{Enrolment, Enrolments},
    outbox::now_ms,
    spelling,
    standing::Standing,
};

mod refresh;

pub use refresh::{Error, Files};

/// The directory; clones share it.
#[derive(Clone, Debug)]
pub struct Directory {
    known: Arc<watch::Sender<Arc<Known>>>,
    // Held while a claim is burnt: one after the other, so that each is judged by what the disk says.
    desk: Arc<Mutex<Option<Places>>>,
}

/// One state of it.
#[derive(Clone, Debug)]
struct Known {
    gateway: GatewayId,
    listed: Enrolments,
    claims: Claims,
    standing: Standing,
    /// Whether enough fog nodes have told since the start: before that, what the chain does not know may only be late.
    is_told: bool,
    assignments: Assignments,
    /// The same by device.
    assigned: HashMap<DeviceId, Assignments>,
    /// Of all of these, each device with the keys that count: the chain's word goes before the home's.
    devices: HashMap<DeviceId, Device>,
}

impl Known {
    fn gather(&mut self) {
        self.assigned = self.assignments.by_device();
        let listed = self.listed.iter();
        let own = |one: &Enrolment| (one.device.clone(), Device::unregistered(self.gateway.clone(), one.key));
        self.devices = listed.map(own).collect();
        for (claim, used) in self.claims.claimed() {
            let device = Device::unregistered(self.gateway.clone(), used.key);
            self.devices.insert(claim.device.clone(), device);
        }
        let told = self.standing.devices.iter();
        self.devices
            .extend(told.map(|(id, device)| (id.clone(), device.clone())));
    }

    fn not_on_chain(&self) -> impl Iterator<Item = &DeviceId> {
        let all = self.devices.keys();
        all.filter(|id| !self.standing.devices.contains_key(id))
    }

    fn subject(&self, reading: &Reading, received_ms: i64) -> Result<SubjectKey, Refusal> {
        // What was measured before a change belongs to whom it was before; a clock that is ahead does not choose.
        let wall_ms = reading.wall.filter(|_| reading.time_quality == TimeQuality::Synced);
        let at_ms = wall_ms.map_or(received_ms, |wall_ms| wall_ms.min(received_ms));
        let id = &reading.device;
        let subject = match self.assigned.get(id).and_then(|lines| lines.at(at_ms)) {
            Some(line) => line.subject.clone(),
            None => {
                let claimed = self.claims.of_device(id).and_then(|(claim, _)| claim.subject.clone());
                claimed.or_else(|| self.listed.of_device(id).map(|one| one.subject.clone()))
            }
        };
        subject.ok_or_else(|| {
            let detail =
                format!("nobody is assigned to device {id} at that time; `gateway assign` says who it measures");
            Refusal::new(Reason::Unassigned, detail)
        })
    }
}

impl From<(GatewayId, Enrolments)> for Directory {
    fn from((gateway, listed): (GatewayId, Enrolments)) -> Self {
        let mut known = Known {
            gateway,
            listed,
            claims: Claims::default(),
            assignments: Assignments::default(),
            standing: Standing::default(),
            is_told: false,
            assigned: HashMap::new(),
            devices: HashMap::new(),
        };
        known.gather();
        Self {
            known: Arc::new(watch::Sender::new(Arc::new(known))),
            desk: Arc::default(),
        }
    }
}

impl Directory {
    fn now(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(|known| {
            let known = Arc::make_mut(known);
            change(known);
            known.gather();
        });
    }

    /// The reading in a message, whose signature is by a key of its device that counts now, and whom it is sealed for.
    ///
    /// # Errors
    /// The [`Refusal`] with which it goes to quarantine.
    pub fn authenticate(&self, signed: &SignedReading, received_ms: i64) -> Result<(Reading, SubjectKey), Refusal> {
        let known = self.now();
        let reading = device::authenticate(signed, |id| known.devices.get(id), |end| end.covers(received_ms))?;
        let is_out = known
            .devices
            .get(&reading.device)
            .is_some_and(|device| device.revoked.is_some());
        if is_out {
            return Err(device::ended(&reading.device));
        }
        // No fog node takes it any more: to acknowledge it would be to lose it.
        if known.standing.revoked.is_some() {
            let detail = "this gateway is out of use; its operator revoked it";
            return Err(Refusal::new(Reason::Revoked, detail));
        }
        let subject = known.subject(&reading, received_ms)?;
        Ok((reading, subject))
    }

    /// Whether a device is revoked.
    #[must_use]
    pub fn is_out(&self, id: &DeviceId) -> bool {
        let known = self.now();
        known.devices.get(id).is_some_and(|device| device.revoked.is_some())
    }

    /// The devices that are not revoked, in no order.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        let known = self.now();
        let all = known.devices.iter();
        all.filter(|(_, device)| device.revoked.is_none())
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether there is a device of this name, revoked or not.
    #[must_use]
    pub fn knows(&self, id: &DeviceId) -> bool {
        self.now().devices.contains_key(id)
    }

    /// Whether its readings belong to one person or another, by the time at which they were measured.
    #[must_use]
    pub fn is_shared(&self, id: &DeviceId) -> bool {
        self.now().assigned.contains_key(id)
    }

    /// Refuses a name that no device has, revoked or not.
    ///
    /// # Errors
    /// A sentence, with the names that are nearest to it.
    pub fn spelt(&self, id: &DeviceId) -> Result<(), String> {
        if self.knows(id) {
            return Ok(());
        }
        spelling::known(id, self.now().devices.keys())
    }

    /// Follows the changes.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.known.subscribe())
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.now().devices.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is the secret of a claim, used or not.
    #[must_use]
    pub fn is_claim_opened(&self, id: &ClaimId, secret: &[u8]) -> bool {
        self.now()
            .claims
            .claim(id)
            .is_some_and(|claim| claim.is_opened_by(secret))
    }

    /// Whether there is a claim of this name, used or not.
    #[must_use]
    pub fn has_claim(&self, id: &ClaimId) -> bool {
        self.now().claims.claim(id).is_some()
    }

    /// Whether a device came by a claim.
    #[must_use]
    pub fn is_claimed(&self, device: &DeviceId) -> bool {
        self.now().claims.of_device(device).is_some()
    }

    /// Whether this is the password of a device that came by a claim.
    #[must_use]
    pub fn is_claimed_by(&self, device: &DeviceId, password: &[u8]) -> bool {
        self.now().claims.is_password(device, password)
    }

    /// Burns a claim for what a device presents; it is on the disk, and the device is known, when this returns.
    ///
    /// # Errors
    /// [`claim::Refused`].
    pub async fn burn(&self, id: &ClaimId, presented: Vec<u8>, evidence: Evidence) -> Result<Claim, claim::Refused> {
        let desk = Arc::clone(&self.desk).lock_owned().await;
        let places = desk.clone().ok_or(claim::Refused::Unknown)?;
        let (gateway, id) = (self.now().gateway.clone(), id.clone());
        let burn = move || {
            // Held until it is written, also if nobody waits for that any more.
            let _desk = desk;
            let place = (&places.network, &gateway);
            Claims::burn(&places.folder, &id, place, (&presented, evidence, now_ms()))
        };
        // The runtime is going down if it does not end.
        let burnt = tokio::task::spawn_blocking(burn).await;
        let claim = burnt.map_err(|_stopping| claim::Refused::NotKept)??;
        self.change(|known| known.claims.take(claim.clone()));
        tracing::info!(device = %claim.device, "a device was claimed; the operator is asked to approve it");
        Ok(claim)
    }

    /// The devices of the list, and those that came by a code, that the chain does not know, in the order of their names: what they
    /// measure is acknowledged and kept, and served to nobody yet. `None` before enough fog nodes have told.
    #[must_use]
    pub fn not_on_chain(&self) -> Option<Vec<DeviceId>> {
        let known = self.now();
        if !known.is_told {
            return None;
        }
        let mut unknown: Vec<_> = known.not_on_chain().cloned().collect();
        unknown.sort_unstable();
        Some(unknown)
    }

    /// How many these are.
    #[must_use]
    pub fn count_not_on_chain(&self) -> Option<usize> {
        let known = self.now();
        known.is_told.then(|| known.not_on_chain().count())
    }

    /// From now on a device of which the fog has told nothing is one that the chain does not know.
    pub fn trust_silence(&self) {
        if !self.now().is_told {
            self.change(|known| known.is_told = true);
        }
    }

    /// What the chain says, as far as it is believed.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.now().standing.clone()
    }

    /// Obeys what the chain says from now on.
    pub fn obey(&self, standing: Standing) {
        self.change(|known| known.standing = standing);
    }
}

/// Wakes whoever acts on changes.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Arc<Known>>);

impl Changes {
    /// Resolves with the next change; never, if the gateway is stopping.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Where a gateway's own files are, for [`Files`].
#[derive(Clone, Debug)]
pub struct Places {
    /// The home's list.
    pub enrolments: PathBuf,
    /// The data folder.
    pub folder: PathBuf,
    /// The network, for proofs.
    pub network: NetworkId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assignment::Assignment,
        intake::Intake,
        outbox::{
            Verdict,
            tests::{Home, measured},
        },
        standing::tests::device,
    };
    use bytes::Bytes;
    use ledger::device::END_GRACE_MS;
    use record::{bundle::Category, bundle::SubjectSecret, decimal::Decimal, signature::SigningKey};
    use serde_json::json;
    use std::{fs, time::Duration};

    const OWN: &str = "vitalfog/v1/home-1/oximeter-1/reading";

    fn says(home: &Home, device: Device) -> Standing {
        Standing {
            revoked: None,
            devices: [(home.oximeter.id.clone(), device)].into(),
        }
    }

    async fn verdict(intake: &Intake, message: &SignedReading) -> Option<Reason> {
        match intake.take(OWN, &Bytes::copy_from_slice(message.as_bytes())).await {
            Ok(Verdict::Spooled(_)) => None,
            Ok(Verdict::Quarantined(_, refusal)) => Some(refusal.reason),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_revoked_device_is_quarantined_from_then_on_and_after_a_restart() {
        let mut home = Home::open();
        assert_eq!(verdict(&home.intake, &home.oximeter.reading(1, 97)).await, None);
        let out = says(&home, device(&home.oximeter.key.public(), Some(7)));
        home.intake.directory().obey(out.clone());
        assert_eq!(
            verdict(&home.intake, &home.oximeter.reading(2, 97)).await,
            Some(Reason::Revoked)
        );
        let forged = home.oximeter.unsigned(3, vec![]).sign(&SigningKey::random());
        assert_eq!(verdict(&home.intake, &forged).await, Some(Reason::WrongSignature));
        out.keep(home.folder.path()).expect("keeps");
        home.reopen().await;
        let standing = Standing::load(home.folder.path()).expect("kept");
        home.intake.directory().obey(standing);
        assert_eq!(
            verdict(&home.intake, &home.oximeter.reading(4, 97)).await,
            Some(Reason::Revoked)
        );
        assert!(home.intake.directory().is_out(&home.oximeter.id));
    }

    #[tokio::test]
    async fn a_device_that_the_chain_does_not_know_is_named_as_soon_as_the_fog_has_told() {
        let home = Home::open();
        let directory = home.intake.directory();
        assert_eq!(verdict(&home.intake, &home.oximeter.reading(1, 97)).await, None);
        assert_eq!(directory.not_on_chain(), None, "nobody has told anything yet");
        directory.trust_silence();
        let both = [home.oximeter.id.clone(), home.scale.id.clone()];
        assert_eq!(directory.not_on_chain(), Some(both.to_vec()));
        directory.obey(says(&home, device(&home.oximeter.key.public(), None)));
        assert_eq!(directory.not_on_chain(), Some(vec![home.scale.id.clone()]));
        directory.obey(says(&home, device(&home.oximeter.key.public(), Some(7))));
        assert_eq!(
            directory.not_on_chain(),
            Some(vec![home.scale.id.clone()]),
            "it is out, not unknown"
        );
    }

    #[tokio::test]
    async fn a_revoked_gateway_acknowledges_nothing_that_nobody_would_take() {
        let home = Home::open();
        home.intake.directory().obey(Standing {
            revoked: Some(ledger::device::Moment::default()),
            ..Standing::default()
        });
        assert_eq!(
            verdict(&home.intake, &home.oximeter.reading(1, 97)).await,
            Some(Reason::Revoked)
        );
        assert_eq!(home.outbox.report().await.expect("runs").counters.acknowledged, 0);
    }

    #[tokio::test]
    async fn after_a_rotation_both_keys_count_until_the_overlap_ends() {
        let home = Home::open();
        let (old, new) = (home.oximeter.key.public(), SigningKey::random());
        let now = u64::try_from(now_ms()).expect("after 1970");
        let turned = |received_until_ms: u64| {
            let first = json!({"key": old, "from": {"height": 2, "at_ms": 1},
                "until": {"height": 5, "received_until_ms": received_until_ms}});
            let second = json!({"key": new.public(), "from": {"height": 5, "at_ms": 9}, "until": null});
            let device = json!({"gateway": "home-1", "keys": [first, second], "revoked": null});
            says(&home, serde_json::from_value(device).expect("a device"))
        };
        let by_new = |seq| {
            let observations = vec![measured("59408-5", Decimal::whole(97), "%")];
            home.oximeter.unsigned(seq, observations).sign(&new)
        };
        assert_eq!(verdict(&home.intake, &by_new(1)).await, Some(Reason::WrongSignature));
        home.intake.directory().obey(turned(now + END_GRACE_MS));
        assert_eq!(verdict(&home.intake, &by_new(2)).await, None);
        assert_eq!(verdict(&home.intake, &home.oximeter.reading(3, 97)).await, None);
        home.intake.directory().obey(turned(now - 1));
        assert_eq!(verdict(&home.intake, &by_new(4)).await, None);
        assert_eq!(
            verdict(&home.intake, &home.oximeter.reading(5, 97)).await,
            Some(Reason::Revoked)
        );
    }

    #[tokio::test]
    async fn a_shared_device_measures_whom_it_is_assigned_to_when_it_measured() {
        let home = Home::open();
        let (_, other) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let (directory, now) = (home.intake.directory(), now_ms());
        let at = |before_ms: i64, received_ms: i64| {
            let mut reading = home.oximeter.unsigned(1, vec![]);
            reading.observations = vec![measured("59408-5", Decimal::whole(97), "%")];
            reading.wall = Some(now - before_ms);
            let judged = directory.authenticate(&reading.sign(&home.oximeter.key), received_ms);
            judged.map(|(_, subject)| subject).map_err(|refusal| refusal.reason)
        };
        assert_eq!(at(0, now), Ok(home.oximeter.subject.clone()), "as listed");
        let lines = [(5_000, Some(other.clone())), (1_000, None)].map(|(before_ms, subject)| Assignment {
            device: home.oximeter.id.clone(),
            subject,
            from_ms: now - before_ms,
        });
        let mut assignments = Assignments::default();
        for line in lines {
            assignments.add(home.folder.path(), line).expect("keeps");
        }
        directory.change(|known| known.assignments = assignments);
        assert_eq!(
            at(6_000, now),
            Ok(home.oximeter.subject.clone()),
            "measured before, sent later"
        );
        assert_eq!(at(3_000, now), Ok(other.clone()));
        assert_eq!(at(0, now), Err(Reason::Unassigned));
        assert_eq!(
            at(-60_000, now - 2_000),
            Ok(other),
            "a clock that is ahead does not choose"
        );
    }

    #[tokio::test]
    async fn whom_a_shared_device_without_a_clock_measured_is_not_guessed_from_a_file() {
        let home = Home::open();
        let undated = |seq| {
            let mut reading = home
                .oximeter
                .unsigned(seq, vec![measured("59408-5", Decimal::whole(97), "%")]);
            (reading.wall, reading.time_quality) = (None, TimeQuality::Relative);
            Bytes::copy_from_slice(reading.sign(&home.oximeter.key).as_bytes())
        };
        let is_taken = |verdict| matches!(verdict, Ok(Verdict::Spooled(_)));
        assert!(
            is_taken(home.intake.take_back(&undated(1)).await),
            "it is nobody else's"
        );
        let mut assignments = Assignments::default();
        let line = Assignment {
            device: home.oximeter.id.clone(),
            subject: Some(home.oximeter.subject.clone()),
            from_ms: 0,
        };
        assignments.add(home.folder.path(), line).expect("keeps");
        home.intake.directory().change(|known| known.assignments = assignments);
        match home.intake.take_back(&undated(2)).await {
            Ok(Verdict::Quarantined(_, refusal)) => assert_eq!(refusal.reason, Reason::Unassigned),
            other => panic!("{other:?}"),
        }
        assert!(
            is_taken(home.intake.take(OWN, &undated(2)).await),
            "from the device itself it is of now"
        );
        let dated = Bytes::copy_from_slice(home.oximeter.reading(3, 97).as_bytes());
        assert!(is_taken(home.intake.take_back(&dated).await));
    }

    #[tokio::test]
    async fn a_list_that_is_changed_is_read_again_and_a_broken_one_stops_nothing_beside_it() {
        let home = Home::open();
        let file = home.folder.path().join("enrolment.json");
        let line = |name: &str| json!({"device": name, "key": home.scale.key.public(), "subject": home.scale.subject});
        let write = |names: &[&str]| {
            let list: Vec<_> = names.iter().map(|name| line(name)).collect();
            fs::write(&file, serde_json::to_string(&list).expect("encodes")).expect("writes");
        };
        write(&["scale-1"]);
        let directory = Directory::from(("home-1".parse().expect("good"), Enrolments::default()));
        let places = Places {
            enrolments: file.clone(),
            folder: home.folder.path().to_owned(),
            network: home.sealer.network,
        };
        let files = Files::open(directory.clone(), places).await.expect("good");
        assert_eq!(directory.len(), 1);
        let task = tokio::spawn(files.run());
        write(&["scale-1", "scale-2"]);
        let until = async |what: &str, is_so: &dyn Fn() -> bool| {
            let so = async {
                while !is_so() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), so).await.expect(what);
        };
        until("read again", &|| directory.len() == 2).await;
        fs::write(&file, "[").expect("writes");
        let line = Assignment {
            device: home.scale.id.clone(),
            subject: None,
            from_ms: 1,
        };
        let mut assignments = Assignments::default();
        assignments.add(home.folder.path(), line).expect("keeps");
        let assigned = || directory.now().assignments.lines().len();
        until("the assignment beside it is taken", &|| assigned() == 1).await;
        let (claim, _) = Claims::make(home.folder.path(), (home.scale.id.clone(), None), (1, 1)).expect("makes");
        let has_claim = || directory.now().claims.claim(&claim.id).is_some();
        until("so is a claim", &has_claim).await;
        // All of it was looked at since the list was broken.
        assert_eq!(directory.len(), 2, "what the list said before holds");
        fs::write(Assignments::file(home.folder.path()), "{").expect("writes");
        write(&["scale-1"]);
        until("a list that is whole again", &|| directory.len() == 1).await;
        assert_eq!((assigned(), has_claim()), (1, true));
        task.abort();
    }
}

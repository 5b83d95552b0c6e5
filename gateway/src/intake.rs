//! The one sink of both MQTT drivers: bytes under a topic become a believed measurement, or go to quarantine.

use std::sync::Arc;

use bytes::Bytes;
use record::{
    bundle::Entry,
    clock::Coincidence,
    ids::{BootId, DeviceId, GatewayId, ReadingId},
    observation::Observation,
    reading::{Reading, Reason, Refusal, SignedReading, TimeQuality},
    topic::{Channel, STATE_BYTES_MAX, Topic},
    transit::SealedReading,
};

use crate::{
    directory::Directory,
    newest::Newest,
    outbox::{CounterState, Measurement, NotTaken, Outbox, Rejected, Urgency, Verdict, Way, now_ms},
    transit::Transit,
};

/// What was measured this long before it came was stored by its device, and does not go before what is measured now.
const STORED_AFTER_MS: i64 = 5 * 60 * 1_000;

/// Takes messages for one gateway.
#[derive(Clone, Debug)]
pub struct Intake {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    gateway: GatewayId,
    directory: Directory,
    outbox: Outbox,
    /// What is shown in the home, if something is.
    newest: Option<Newest>,
    transit: Transit,
}

/// A message whose signature is its device's, and what it says.
struct Genuine {
    measurement: Measurement,
    reading: Reading,
}

/// Why it is not believed, and its place in the sequence, if that counts.
type Unbelieved = (Refusal, Option<Box<Measurement>>);

impl Intake {
    /// The sink of a gateway.
    #[must_use]
    pub fn with(gateway: GatewayId, directory: Directory, outbox: Outbox, transit: Transit) -> Self {
        Self {
            parts: Arc::new(Parts {
                gateway,
                directory,
                outbox,
                newest: None,
                transit,
            }),
        }
    }

    /// The same sink, which also tells who shows values what has become durable.
    #[must_use]
    pub fn shown(self, newest: Option<Newest>) -> Self {
        let parts = Parts {
            gateway: self.parts.gateway.clone(),
            directory: self.parts.directory.clone(),
            outbox: self.parts.outbox.clone(),
            newest,
            transit: self.parts.transit.clone(),
        };
        Self { parts: Arc::new(parts) }
    }

    /// Which device measures whom.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.parts.directory
    }

    /// The gateway it takes messages for.
    #[must_use]
    pub fn gateway(&self) -> &GatewayId {
        &self.parts.gateway
    }

    /// The devices that are enrolled now and not revoked, in no order.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        self.parts.directory.devices()
    }

    /// Whether a device is enrolled.
    #[must_use]
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.parts.directory.knows(device)
    }

    /// Takes a message: answers when it is durable, as a reading or in quarantine.
    ///
    /// # Errors
    /// [`NotTaken`]: it must not be acknowledged.
    pub async fn take(&self, topic: &str, message: &Bytes) -> Result<Verdict, NotTaken> {
        self.receive(topic, message).await.1
    }

    /// Takes a message, and says which reading it is, if the signature is its device's.
    pub async fn receive(&self, topic: &str, message: &Bytes) -> (Option<ReadingId>, Result<Verdict, NotTaken>) {
        self.receive_at(topic, message, now_ms()).await
    }

    /// The same for one that came before, in milliseconds since 1970, and was not taken then.
    pub async fn receive_at(
        &self,
        topic: &str,
        message: &Bytes,
        received_ms: i64,
    ) -> (Option<ReadingId>, Result<Verdict, NotTaken>) {
        let topic = match Topic::parse(&self.parts.gateway, topic) {
            Ok(topic) => topic,
            Err(refusal) => return (None, self.refuse(None, refusal, message).await),
        };
        if topic.channel == Channel::State && message.len() > STATE_BYTES_MAX {
            let refusal = giant_state(message.len());
            return (None, self.refuse(Some(topic.device), refusal, message).await);
        }
        // From here on it is what the device signed, whether it came sealed or not: a repetition is one also if it was sealed
        // anew, and whoever looks into the quarantine can read it.
        let message = match self.open(&topic, message) {
            Ok(opened) => opened,
            Err(refusal) => return (None, self.refuse(Some(topic.device), refusal, message).await),
        };
        let genuine = match self.authenticate(&message, received_ms) {
            Ok(genuine) => genuine,
            Err(refusal) => return (None, self.refuse(Some(topic.device), refusal, &message).await),
        };
        let reading = genuine.measurement.id.clone();
        (Some(reading), self.keep(genuine, topic, &message, received_ms).await)
    }

    /// The signed message in what came. For a device that nobody knows nothing is opened: that costs more than a look.
    fn open(&self, topic: &Topic, message: &Bytes) -> Result<Bytes, Refusal> {
        let device = &topic.device;
        if SealedReading::is_form_of(message) && !self.knows(device) {
            let detail = format!("device {device} is not enrolled here; enrol it first");
            return Err(Refusal::new(Reason::UnknownDevice, detail));
        }
        self.parts.transit.open(topic, message)
    }

    /// Takes a message that did not come from its device, but from a file: what it must be is the same, and it counts as
    /// published under its device's topic.
    ///
    /// # Errors
    /// [`NotTaken`]: it is to be handed in again.
    pub async fn take_back(&self, message: &Bytes) -> Result<Verdict, NotTaken> {
        let received_ms = now_ms();
        if SealedReading::is_form_of(message) {
            let detail =
                "a sealed message opens under its topic alone: hand in what the device signed, before it was sealed";
            return self
                .refuse(None, Refusal::new(Reason::NotOpened, detail), message)
                .await;
        }
        let genuine = match self.authenticate(message, received_ms) {
            Ok(genuine) => genuine,
            Err(refusal) => return self.refuse(None, refusal, message).await,
        };
        let (device, is_dated) = (&genuine.reading.device, genuine.measurement.wall_ms.is_some());
        if !is_dated && self.parts.directory.is_shared(device) {
            let detail = format!("{device} is shared, and without a clock nobody knows whom it measured then");
            let refusal = Refusal::new(Reason::Unassigned, detail);
            return self.refuse(Some(device.clone()), refusal, message).await;
        }
        let topic = Topic {
            device: device.clone(),
            channel: channel_of(&genuine.reading),
        };
        self.keep(genuine, topic, message, received_ms).await
    }

    /// A device says, unsigned, what stands on its tick counter now.
    pub fn stated(&self, device: &DeviceId, (boot, up_ms): (BootId, u64), way: Way) {
        if self.knows(device) {
            let pair = Coincidence {
                gateway_ms: now_ms(),
                up_ms,
            };
            self.parts.outbox.state(CounterState {
                device: device.clone(),
                boot,
                pair,
                way,
            });
        }
    }

    async fn keep(
        &self,
        genuine: Genuine,
        topic: Topic,
        message: &Bytes,
        received_ms: i64,
    ) -> Result<Verdict, NotTaken> {
        match genuine.believed(&topic, received_ms) {
            Ok((measurement, observations)) => {
                let verdict = self.parts.outbox.append(measurement).await;
                if let (Ok(Verdict::Spooled(_)), Some(newest)) = (&verdict, &self.parts.newest) {
                    newest.take(&observations);
                }
                verdict
            }
            Err((refusal, measurement)) => {
                let rejected = rejected(Some(topic.device), refusal, message, received_ms);
                self.parts
                    .outbox
                    .quarantine(Rejected {
                        measurement,
                        ..rejected
                    })
                    .await
            }
        }
    }

    /// Puts a message in quarantine that the door has refused already.
    ///
    /// # Errors
    /// [`NotTaken`]: it must not be acknowledged.
    pub async fn refuse(
        &self,
        device: Option<DeviceId>,
        refusal: Refusal,
        message: &Bytes,
    ) -> Result<Verdict, NotTaken> {
        self.parts
            .outbox
            .quarantine(rejected(device, refusal, message, now_ms()))
            .await
    }

    /// Records a message that was cut off because of its size, before it was received.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn refuse_unreceived(&self, device: Option<DeviceId>, size_bytes: u64) -> Result<Verdict, NotTaken> {
        let refusal = Refusal::new(Reason::TooLarge, "the packet is larger than this broker receives");
        let rejected = Rejected {
            size_bytes,
            ..rejected(device, refusal, &Bytes::new(), now_ms())
        };
        self.parts.outbox.quarantine(rejected).await
    }

    fn authenticate(&self, message: &Bytes, received_ms: i64) -> Result<Genuine, Refusal> {
        let signed = SignedReading::receive(message)?;
        let (reading, subject) = self.parts.directory.authenticate(&signed, received_ms)?;
        let wall_ms = reading.wall.filter(|_| reading.time_quality == TimeQuality::Synced);
        let ticks_ms = reading.wall.is_none().then_some(reading.up_ms);
        let entry = Entry::new(received_ms, signed);
        Ok(Genuine {
            measurement: Measurement {
                id: reading.id(),
                subject,
                entry,
                wall_ms,
                ticks_ms,
                urgency: Urgency::Live,
                is_wave: false,
            },
            reading,
        })
    }
}

impl Genuine {
    /// The measurement, if it came under its device's topic and says something a body and a sensor can produce. One that
    /// does not keeps its place in the sequence, unless it was published by somebody else.
    fn believed(self, topic: &Topic, received_ms: i64) -> Result<(Measurement, Vec<Observation>), Unbelieved> {
        if !topic.channel.carries_readings() || topic.device != self.reading.device {
            let detail = format!(
                "a reading of {} came under the topic of {}",
                self.reading.device, topic.device
            );
            return Err((Refusal::new(Reason::WrongTopic, detail), None));
        }
        match Observation::of(&self.reading, received_ms) {
            Ok(observations) => {
                let measurement = Measurement {
                    urgency: urgency(topic.channel, self.measurement.wall_ms, received_ms),
                    is_wave: topic.channel == Channel::Wave,
                    ..self.measurement
                };
                Ok((measurement, observations))
            }
            Err(refusal) => Err((refusal, Some(Box::new(self.measurement)))),
        }
    }
}

/// Where a device would have published it, as far as the message says so: a waveform gives way to single values, whichever way
/// it came. That something was an alarm nobody has signed, and by the time it comes in a file it is none any more.
fn channel_of(reading: &Reading) -> Channel {
    let is_wave = reading.observations.iter().any(|measured| measured.samples.is_some());
    if is_wave { Channel::Wave } else { Channel::Reading }
}

/// A state that is no state: so many bytes are nothing that a device has to say of itself.
fn giant_state(bytes: usize) -> Refusal {
    let detail =
        format!("a state has at most {STATE_BYTES_MAX} bytes, this one has {bytes}; readings go under `reading`");
    Refusal::new(Reason::TooLarge, detail)
}

/// The channel says that it is an alarm; its own clock, if that can be trusted, that it was stored.
fn urgency(channel: Channel, wall_ms: Option<i64>, received_ms: i64) -> Urgency {
    if channel == Channel::Event {
        Urgency::Alarm
    } else if wall_ms.is_some_and(|wall_ms| received_ms.saturating_sub(wall_ms) > STORED_AFTER_MS) {
        Urgency::Backfill
    } else {
        Urgency::Live
    }
}

fn rejected(device: Option<DeviceId>, refusal: Refusal, message: &Bytes, at_ms: i64) -> Rejected {
    tracing::debug!(
        device = device.as_ref().map(DeviceId::as_str),
        reason = refusal.reason.as_str(),
        "quarantined"
    );
    let size_bytes = message.len() as u64;
    Rejected {
        device,
        refusal,
        message: message.clone(),
        size_bytes,
        measurement: None,
        at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        outbox::{
            Config,
            tests::{Home, measured},
        },
        transit::Sealed,
    };
    use record::{
        decimal::Decimal,
        reading::{Measured, Samples},
        signature::SigningKey,
    };

    fn topic(device: &str) -> String {
        format!("vitalfog/v1/home-1/{device}/reading")
    }

    async fn reason(home: &Home, topic: &str, message: &[u8]) -> Reason {
        match home
            .intake
            .take(topic, &Bytes::copy_from_slice(message))
            .await
            .expect("taken")
        {
            Verdict::Quarantined(_, refusal) => refusal.reason,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_good_reading_is_spooled_and_a_repetition_is_a_duplicate() {
        let home = Home::open();
        let message = Bytes::copy_from_slice(home.oximeter.reading(1, 97).as_bytes());
        assert!(matches!(
            home.intake.take(&topic("oximeter-1"), &message).await,
            Ok(Verdict::Spooled(_))
        ));
        assert!(matches!(
            home.intake.take(&topic("oximeter-1"), &message).await,
            Ok(Verdict::Duplicate(_))
        ));
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.acknowledged, report.counters.duplicates), (1, 1));
    }

    #[tokio::test]
    async fn an_event_is_an_alarm_and_what_was_measured_long_ago_is_backfill() {
        let home = Home::open();
        let take = |seq, channel: &'static str, age_ms| {
            let mut reading = home
                .oximeter
                .unsigned(seq, vec![measured("59408-5", Decimal::whole(97), "%")]);
            reading.wall = Some(now_ms() - age_ms);
            let message = Bytes::copy_from_slice(reading.sign(&home.oximeter.key).as_bytes());
            let intake = home.intake.clone();
            async move {
                let topic = format!("vitalfog/v1/home-1/oximeter-1/{channel}");
                assert!(matches!(intake.take(&topic, &message).await, Ok(Verdict::Spooled(_))));
            }
        };
        take(1, "reading", 86_400_000).await;
        take(2, "reading", 1_000).await;
        take(3, "event", 86_400_000).await;
        let tickets = home.outbox.tickets(0, 10).expect("reads");
        let urgencies: Vec<_> = tickets.iter().map(|ticket| ticket.urgency).collect();
        assert_eq!(urgencies, [Urgency::Backfill, Urgency::Live, Urgency::Alarm]);
        assert_eq!(home.outbox.alarms(0, 10).expect("reads"), tickets[2..]);
        assert_eq!(home.outbox.newest().borrow().next_alarm, 3);
    }

    #[tokio::test]
    async fn what_is_not_believed_is_quarantined_with_its_reason() {
        let home = Home::open();
        let good = home.oximeter.reading(1, 97);
        let stranger = SigningKey::random();
        let forged = home
            .oximeter
            .unsigned(2, vec![measured("59408-5", Decimal::whole(97), "%")])
            .sign(&stranger);
        let nobody = record::reading::Reading {
            device: "nobody".parse().expect("good"),
            ..home
                .oximeter
                .unsigned(2, vec![measured("59408-5", Decimal::whole(97), "%")])
        };
        let sick = home
            .oximeter
            .unsigned(3, vec![measured("59408-5", Decimal::whole(970), "%")]);
        let unit = home
            .oximeter
            .unsigned(4, vec![measured("59408-5", Decimal::whole(97), "Cel")]);
        let code = home
            .oximeter
            .unsigned(5, vec![measured("0-0", Decimal::whole(97), "%")]);
        let own = topic("oximeter-1");
        let key = &home.oximeter.key;
        assert_eq!(reason(&home, &own, forged.as_bytes()).await, Reason::WrongSignature);
        assert_eq!(
            reason(&home, &own, nobody.sign(&stranger).as_bytes()).await,
            Reason::UnknownDevice
        );
        assert_eq!(reason(&home, &own, b"not a reading").await, Reason::Malformed);
        assert_eq!(reason(&home, &own, &vec![0; 1 << 20]).await, Reason::TooLarge);
        assert_eq!(
            reason(&home, &topic("scale-1"), good.as_bytes()).await,
            Reason::WrongTopic
        );
        assert_eq!(
            reason(&home, "vitalfog/v1/home-2/oximeter-1/reading", good.as_bytes()).await,
            Reason::WrongTopic
        );
        assert_eq!(
            reason(&home, "vitalfog/v1/home-1/oximeter-1/ack", good.as_bytes()).await,
            Reason::WrongTopic
        );
        assert_eq!(
            reason(&home, &own, sick.sign(key).as_bytes()).await,
            Reason::Implausible
        );
        assert_eq!(reason(&home, &own, unit.sign(key).as_bytes()).await, Reason::WrongUnit);
        assert_eq!(
            reason(&home, &own, code.sign(key).as_bytes()).await,
            Reason::UnknownCode
        );
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.acknowledged, report.quarantined.total), (0, 10));
        assert_eq!(report.quarantined.by_reason["wrong-topic"], 3);
        assert_eq!(
            report.quarantined.recent[0].device.as_ref().map(DeviceId::as_str),
            Some("oximeter-1")
        );
    }

    #[tokio::test]
    async fn a_quarantined_number_is_no_gap_and_its_repetition_is_a_duplicate() {
        let home = Home::open();
        let own = topic("oximeter-1");
        let absurd = home
            .oximeter
            .unsigned(1, vec![measured("59408-5", Decimal::whole(970), "%")]);
        let message = Bytes::copy_from_slice(absurd.sign(&home.oximeter.key).as_bytes());
        assert!(matches!(
            home.intake.take(&own, &message).await,
            Ok(Verdict::Quarantined(..))
        ));
        assert!(matches!(
            home.intake.take(&own, &message).await,
            Ok(Verdict::Duplicate(_))
        ));
        let next = Bytes::copy_from_slice(home.oximeter.reading(2, 97).as_bytes());
        assert!(matches!(home.intake.take(&own, &next).await, Ok(Verdict::Spooled(_))));
        assert_eq!(home.outbox.gaps().await, []);
    }

    #[tokio::test]
    async fn a_stolen_message_under_another_topic_does_not_use_up_the_owners_number() {
        let home = Home::open();
        let message = Bytes::copy_from_slice(home.oximeter.reading(1, 97).as_bytes());
        assert_eq!(reason(&home, &topic("scale-1"), &message).await, Reason::WrongTopic);
        assert!(matches!(
            home.intake.take(&topic("oximeter-1"), &message).await,
            Ok(Verdict::Spooled(_))
        ));
    }

    fn sealed(home: &Home, device: &str, channel: Channel, message: &[u8]) -> Bytes {
        let device = device.parse().expect("good");
        let sealed = home
            .reading_key()
            .seal(&Topic { device, channel }, message)
            .expect("seals");
        Bytes::from(sealed.encode())
    }

    #[tokio::test]
    async fn a_sealed_reading_is_spooled_as_signed_and_known_again_however_it_comes() {
        let home = Home::open();
        let (own, signed) = (topic("oximeter-1"), home.oximeter.reading(1, 97));
        let seal = || sealed(&home, "oximeter-1", Channel::Reading, signed.as_bytes());
        let (first, anew) = (seal(), seal());
        assert_ne!(first, anew);
        assert!(matches!(home.intake.take(&own, &first).await, Ok(Verdict::Spooled(_))));
        let clear = Bytes::copy_from_slice(signed.as_bytes());
        for again in [first, anew, clear] {
            assert!(matches!(
                home.intake.take(&own, &again).await,
                Ok(Verdict::Duplicate(_))
            ));
        }
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.acknowledged, report.counters.duplicates), (1, 3));
        assert_eq!(report.quarantined.total, 0);
        let other = home.oximeter.reading(1, 96);
        let other = sealed(&home, "oximeter-1", Channel::Reading, other.as_bytes());
        assert_eq!(reason(&home, &own, &other).await, Reason::Equivocation);
    }

    #[tokio::test]
    async fn what_does_not_open_is_kept_apart_and_uses_up_no_number() {
        let mut home = Home::open();
        let (own, signed) = (topic("oximeter-1"), home.oximeter.reading(1, 97));
        let seal = |device, channel| sealed(&home, device, channel, signed.as_bytes());
        let good = seal("oximeter-1", Channel::Reading);
        let mut flipped = good.to_vec();
        *flipped.last_mut().expect("bytes") ^= 1;
        let elsewhere = Home::open();
        let foreign = sealed(&elsewhere, "oximeter-1", Channel::Reading, signed.as_bytes());
        let cases = [
            (own.clone(), seal("scale-1", Channel::Reading), Reason::NotOpened),
            (own.clone(), seal("oximeter-1", Channel::Event), Reason::NotOpened),
            (own.clone(), foreign, Reason::NotOpened),
            (own.clone(), Bytes::from(flipped), Reason::NotOpened),
            (own.clone(), good.slice(..good.len() - 1), Reason::Malformed),
            (topic("scale-1"), good.clone(), Reason::NotOpened),
            (topic("nobody"), seal("nobody", Channel::Reading), Reason::UnknownDevice),
            (format!("{own}s"), good.clone(), Reason::WrongTopic),
            (own.replace("home-1", "home-2"), good.clone(), Reason::WrongTopic),
            // It opens, and what is inside is judged as ever.
            (topic("scale-1"), seal("scale-1", Channel::Reading), Reason::WrongTopic),
            (
                own.clone(),
                sealed(&home, "oximeter-1", Channel::Reading, &good),
                Reason::Malformed,
            ),
            (
                own.clone(),
                sealed(&home, "oximeter-1", Channel::Reading, b""),
                Reason::Malformed,
            ),
        ];
        for (number, (topic, message, expected)) in cases.iter().enumerate() {
            assert_eq!(reason(&home, topic, message).await, *expected, "case {number}");
        }
        let verdict = home.intake.take_back(&good).await;
        assert!(matches!(verdict, Ok(Verdict::Quarantined(_, refusal)) if refusal.reason == Reason::NotOpened));
        assert!(matches!(home.intake.take(&own, &good).await, Ok(Verdict::Spooled(_))));
        let wanted: Vec<_> = cases.iter().map(|(_, message, _)| message.to_vec()).collect();
        // What did not open is kept as it came; what did, as the device signed it.
        let kept = home.in_quarantine().await;
        assert_eq!(
            kept.len(),
            wanted.len(),
            "all but the empty one, and the one from a file"
        );
        assert_eq!(kept[..9], wanted[..9]);
        assert_eq!(kept[9..], [signed.as_bytes(), &good[..], &good[..]].map(<[u8]>::to_vec));
    }

    #[tokio::test]
    async fn where_seals_are_required_a_reading_in_the_clear_is_refused_and_the_same_one_sealed_is_taken() {
        let mut home = Home::open();
        home.demand(Sealed::Required);
        let (own, signed) = (topic("oximeter-1"), home.oximeter.reading(1, 97));
        assert_eq!(reason(&home, &own, signed.as_bytes()).await, Reason::Unsealed);
        let message = sealed(&home, "oximeter-1", Channel::Reading, signed.as_bytes());
        assert!(matches!(
            home.intake.take(&own, &message).await,
            Ok(Verdict::Spooled(_))
        ));
        // A file has passed no broker.
        let next = Bytes::copy_from_slice(home.oximeter.reading(2, 97).as_bytes());
        assert!(matches!(home.intake.take_back(&next).await, Ok(Verdict::Spooled(_))));
        assert_eq!(home.outbox.gaps().await, []);
    }

    #[tokio::test]
    async fn a_state_that_is_too_large_is_refused_as_that() {
        let home = Home::open();
        let state = vec![b' '; STATE_BYTES_MAX + 1];
        let under = "vitalfog/v1/home-1/oximeter-1/state";
        assert_eq!(reason(&home, under, &state).await, Reason::TooLarge);
        assert_eq!(reason(&home, &topic("oximeter-1"), &state).await, Reason::Malformed);
    }

    #[tokio::test]
    async fn a_waveform_from_a_file_gives_way_as_one_from_its_device_does() {
        let home = Home::with(Config {
            bytes_max: 64_000,
            waves_percent: 1,
            ..Config::default()
        });
        home.spool(&home.scale, 1).await;
        let block = Measured {
            value: None,
            samples: Some(Samples {
                origin: Decimal::whole(0),
                period_ms: Decimal::whole(8),
                factor: Decimal::whole(1),
                data: vec![1, 2, 3],
            }),
            ..measured("150452", Decimal::whole(0), "1")
        };
        let signed = |seq, measured| {
            let signed = home.oximeter.unsigned(seq, vec![measured]).sign(&home.oximeter.key);
            Bytes::copy_from_slice(signed.as_bytes())
        };
        let wave = signed(1, block);
        assert_eq!(home.intake.take_back(&wave).await, Err(NotTaken::Full));
        let value = signed(2, measured("59408-5", Decimal::whole(97), "%"));
        assert!(matches!(home.intake.take_back(&value).await, Ok(Verdict::Spooled(_))));
    }

    #[tokio::test]
    async fn what_is_said_of_a_sealed_reading_has_no_value_and_what_is_kept_can_be_read_by_who_looks() {
        let mut home = Home::open();
        let own = topic("oximeter-1");
        let say = |seq, code: &str, (value, unit): (&str, &str)| {
            let value = value.parse().expect("a number");
            let reading = home.oximeter.unsigned(seq, vec![measured(code, value, unit)]);
            reading.sign_json(&home.oximeter.key)
        };
        let taken = sealed(
            &home,
            "oximeter-1",
            Channel::Reading,
            home.oximeter.reading(1, 97).as_bytes(),
        );
        assert!(matches!(home.intake.take(&own, &taken).await, Ok(Verdict::Spooled(_))));
        let refused = [
            (say(2, "59408-5", ("975.31", "%")), Reason::Implausible),
            (say(3, "59408-5", ("97.531", "Cel")), Reason::WrongUnit),
            (say(4, "0-0", ("97.531", "%")), Reason::UnknownCode),
            (say(1, "59408-5", ("97.531", "%")), Reason::Equivocation),
        ];
        for (signed, expected) in &refused {
            let message = sealed(&home, "oximeter-1", Channel::Reading, signed.as_bytes());
            let Ok(Verdict::Quarantined(durable, refusal)) = home.intake.take(&own, &message).await else {
                panic!("{expected:?}");
            };
            assert_eq!(refusal.reason, *expected);
            let progress = durable
                .progress()
                .map(|progress| serde_json::to_string(progress).expect("encodes"));
            for said in [refusal.to_string(), progress.unwrap_or_default()] {
                assert!(
                    !said.contains("97.5") && !said.contains("531") && !said.contains("975"),
                    "{said}"
                );
            }
        }
        let kept = home.in_quarantine().await;
        let signed: Vec<_> = refused.iter().map(|(signed, _)| signed.as_bytes().to_vec()).collect();
        assert_eq!(kept, signed);
    }
}

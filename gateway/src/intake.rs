//! The one sink of both MQTT drivers: bytes under a topic become a believed measurement, or go to quarantine.

use std::sync::Arc;

use bytes::Bytes;
use record::{
    bundle::Entry,
    ids::{DeviceId, GatewayId, ReadingId},
    observation::Observation,
    reading::{Reading, Reason, Refusal, SignedReading, TimeQuality},
};

use crate::{
    enrolment::Enrolments,
    outbox::{Measurement, NotTaken, Outbox, Rejected, Verdict, now_ms},
    topic::Topic,
};

/// Takes messages for one gateway.
#[derive(Clone, Debug)]
pub struct Intake {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    gateway: GatewayId,
    enrolments: Enrolments,
    outbox: Outbox,
}

/// A message whose signature is its device's, and what it says.
struct Genuine {
    measurement: Measurement,
    reading: Reading,
}

impl Intake {
    /// The sink of a gateway.
    #[must_use]
    pub fn new(gateway: GatewayId, enrolments: Enrolments, outbox: Outbox) -> Self {
        Self {
            parts: Arc::new(Parts {
                gateway,
                enrolments,
                outbox,
            }),
        }
    }

    /// The gateway it takes messages for.
    #[must_use]
    pub fn gateway(&self) -> &GatewayId {
        &self.parts.gateway
    }

    /// The devices that are enrolled now, in no order.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        self.parts.enrolments.devices().cloned().collect()
    }

    /// Whether a device is enrolled.
    #[must_use]
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.parts.enrolments.of_device(device).is_some()
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
        let received_ms = now_ms();
        let topic = match Topic::parse(&self.parts.gateway, topic) {
            Ok(topic) => topic,
            Err(refusal) => return (None, self.refuse(None, refusal, message).await),
        };
        let genuine = match self.authenticate(message, received_ms) {
            Ok(genuine) => genuine,
            Err(refusal) => return (None, self.refuse(Some(topic.device), refusal, message).await),
        };
        let reading = genuine.measurement.id.clone();
        let taken = match genuine.believed(&topic, received_ms) {
            Ok(measurement) => self.parts.outbox.append(measurement).await,
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
        };
        (Some(reading), taken)
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
        let enrolments = &self.parts.enrolments;
        let reading = signed.decode(|device| enrolments.of_device(device).map(|e| e.key))?;
        let subject = enrolments
            .of_device(&reading.device)
            .expect("decode asked for this device's key")
            .subject
            .clone();
        let wall_ms = reading.wall.filter(|_| reading.time_quality == TimeQuality::Synced);
        let entry = Entry {
            received_ms,
            reading: signed,
        };
        Ok(Genuine {
            measurement: Measurement {
                id: reading.id(),
                subject,
                entry,
                wall_ms,
            },
            reading,
        })
    }
}

impl Genuine {
    /// The measurement, if it came under its device's topic and says something a body and a sensor can produce. One that
    /// does not keeps its place in the sequence, unless it was published by somebody else.
    fn believed(self, topic: &Topic, received_ms: i64) -> Result<Measurement, (Refusal, Option<Box<Measurement>>)> {
        if !topic.channel.carries_readings() || topic.device != self.reading.device {
            let detail = format!(
                "a reading of {} came under the topic of {}",
                self.reading.device, topic.device
            );
            return Err((Refusal::new(Reason::WrongTopic, detail), None));
        }
        match Observation::of(&self.reading, received_ms) {
            Ok(_observations) => Ok(self.measurement),
            Err(refusal) => Err((refusal, Some(Box::new(self.measurement)))),
        }
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
    use crate::outbox::tests::{Home, measured};
    use record::{decimal::Decimal, signature::SigningKey};

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
}

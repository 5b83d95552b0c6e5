//! Judges the messages of a foreign device as the gateway would, and says for each what is wrong and what to change.
//!
//! What the gateway refuses is a *fault*, and so is what loses readings without a refusal (QoS 0, a number used twice or
//! left out). *Advice* is what works and could be better. Decoding, signature, codes and limits are `record`'s, the same
//! that the gateway uses; `tests/peers/devices.py` sends the same messages to a gateway and compares.

mod capture;
mod malformed;
mod numbers;
mod resend;
mod signature;

use std::{collections::HashMap, fmt};

use record::{
    canonical::{Digest, Domain},
    ids::{BootId, DeviceId, GatewayId, ReadingId},
    observation::{LAG_FLAG_MS, Observation, SKEW_FLAG_MS},
    reading::{READING_BYTES_MAX, Reading, Reason, Refusal, SignedReading, TimeQuality, within_size},
    signature::PublicKey,
    topic::{Channel, STATE_BYTES_MAX, Topic},
    transit::{ReadingKeys, SealedReading},
};

pub(crate) use capture::line as captured_line;
pub use capture::{Captured, NotCaptured};
use numbers::{LEAP_MAX, Numbers, Place};
use resend::Asked;

/// Something to say about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it has to be changed.
    pub is_fault: bool,
    /// The reason's word, or the name of the rule.
    pub rule: &'static str,
    /// What to change.
    pub sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = if self.is_fault { "FAULT" } else { "advice" };
        write!(f, "{weight} {}: {}", self.rule, self.sentence)
    }
}

fn fault(rule: &'static str, sentence: impl Into<String>) -> Finding {
    Finding {
        is_fault: true,
        rule,
        sentence: sentence.into(),
    }
}

fn advice(rule: &'static str, sentence: impl Into<String>) -> Finding {
    Finding {
        is_fault: false,
        rule,
        sentence: sentence.into(),
    }
}

/// What a message is, and what there is to say about it.
#[derive(Debug)]
pub struct Verdict {
    /// In a few words, without any measured value.
    pub what: String,
    /// All findings.
    pub findings: Vec<Finding>,
}

/// Knows the devices, and what they have sent so far.
#[derive(Debug)]
pub struct Judge {
    gateway: GatewayId,
    keys: HashMap<DeviceId, PublicKey>,
    numbers: Numbers,
    asked: Asked,
    seals: Seals,
}

/// What the judge demands of seals, and can do with them.
#[derive(Debug, Default)]
pub struct Seals {
    /// The gateway's own keys: without them nobody can look into what is sealed.
    pub keys: Option<ReadingKeys>,
    /// Whether what comes in the clear is a fault.
    pub are_required: bool,
}

impl Judge {
    /// A judge of the devices of one gateway; with `from_the_start` the first number of each boot must be 1.
    #[must_use]
    pub fn new(gateway: GatewayId, keys: HashMap<DeviceId, PublicKey>, from_the_start: bool) -> Self {
        Self {
            gateway,
            keys,
            numbers: Numbers::new(from_the_start),
            asked: Asked::default(),
            seals: Seals::default(),
        }
    }

    /// With another demand of seals.
    #[must_use]
    pub fn with_seals(self, seals: Seals) -> Self {
        Self { seals, ..self }
    }

    /// Judges the next message.
    pub fn judge(&mut self, message: &Captured) -> Verdict {
        let Ok(topic) = Topic::parse(&self.gateway, &message.topic) else {
            return Verdict {
                what: "a message under a strange topic".to_owned(),
                findings: vec![self.refused(&self.strange(), message)],
            };
        };
        match topic.channel {
            Channel::Reading | Channel::Wave | Channel::Event => self.reading(&topic, message),
            Channel::State => {
                self.asked.state(&topic.device, &message.payload);
                state(message)
            }
            Channel::Ack | Channel::Command => {
                if topic.channel == Channel::Command {
                    self.asked.command(&topic.device, &message.payload);
                }
                Verdict {
                    what: format!("{}: from the gateway", topic.channel.as_str()),
                    findings: Vec::new(),
                }
            }
            Channel::Error => Verdict {
                what: format!("the gateway refuses a message of {}", topic.device),
                findings: Vec::new(),
            },
        }
    }

    /// What is missing at the end: each a fault, because nothing later filled the gap.
    #[must_use]
    pub fn missing(&self) -> Vec<Finding> {
        let sentence = |gap: numbers::Gap| {
            let (device, boot, from, to) = gap;
            let which = if from == to {
                format!("{from}")
            } else {
                format!("{from} to {to}")
            };
            format!(
                "{device}, boot {boot}: {which} never came. Number every message by one more than the last and send it until \
                 it is acknowledged; a hospital is told of each number that is missing"
            )
        };
        let gaps = self.numbers.missing().map(|gap| fault("gap", sentence(gap)));
        gaps.chain(self.asked.unanswered().into_iter().map(silent)).collect()
    }

    fn reading(&mut self, topic: &Topic, message: &Captured) -> Verdict {
        let mut findings = delivery(message);
        let opened = match self.opened(topic, message) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                findings.push(advice(
                    "sealed",
                    "it has the sealed form, and nobody but the gateway can say more; --reading-keys opens it",
                ));
                return Verdict {
                    what: format!("a sealed message of {}", topic.device),
                    findings,
                };
            }
            Err(refusal) => {
                findings.push(self.refused(&refusal, message));
                return Verdict {
                    what: format!("a message of {}", topic.device),
                    findings,
                };
            }
        };
        // From here on what the device signed.
        let message = &opened;
        let reading = match self.genuine(topic, message) {
            Ok(reading) => reading,
            Err(refusal) => {
                findings.push(self.refused(&refusal, message));
                return Verdict {
                    what: format!("a message of {}", topic.device),
                    findings,
                };
            }
        };
        let received_ms = message.received_ms.unwrap_or_else(now_ms);
        if let Err(refusal) = Observation::of(&reading, received_ms) {
            findings.push(self.refused(&refusal, message));
        }
        findings.extend(clock(&reading, received_ms));
        let (id, digest) = (reading.id(), Digest::of(Domain::READING, &[&message.payload]));
        let place = self.numbers.record(&id, digest, reading.up_ms);
        self.asked.came(&id);
        findings.extend(sequence(&id, place));
        let again = if place == Place::Repeated { ", sent again" } else { "" };
        Verdict {
            what: format!("{} {id}{again}", topic.channel.as_str()),
            findings,
        }
    }

    /// What topics look like, said to whoever makes devices.
    fn strange(&self) -> Refusal {
        let shape = format!(
            "topics here are vitalfog/v1/{}/DEVICE/CHANNEL with a device name of a-z, 0-9 and '-', and one of reading, \
             wave, event, state as channel",
            self.gateway
        );
        Refusal::new(Reason::WrongTopic, shape)
    }

    /// What was signed, whether it came sealed or not; `None` if it is sealed and there are no keys.
    fn opened(&self, topic: &Topic, message: &Captured) -> Result<Option<Captured>, Refusal> {
        within_size(&message.payload)?;
        if !SealedReading::is_form_of(&message.payload) {
            if self.seals.are_required {
                let detail = "it came in the clear: seal the same bytes to the gateway's reading key, and send that";
                return Err(Refusal::new(Reason::Unsealed, detail));
            }
            return Ok(Some(message.clone()));
        }
        let sealed = SealedReading::receive(&message.payload)?;
        let Some(keys) = &self.seals.keys else {
            return Ok(None);
        };
        let payload = keys.open(topic, &sealed)?;
        Ok(Some(Captured {
            payload,
            ..message.clone()
        }))
    }

    fn genuine(&self, topic: &Topic, message: &Captured) -> Result<Reading, Refusal> {
        let signed = SignedReading::receive(&message.payload)?;
        let reading = signed.decode(|device| self.keys.get(device).copied())?;
        if reading.device == topic.device {
            return Ok(reading);
        }
        let detail = format!(
            "a reading of {} came under the topic of {}",
            reading.device, topic.device
        );
        Err(Refusal::new(Reason::WrongTopic, detail))
    }

    fn refused(&self, refusal: &Refusal, message: &Captured) -> Finding {
        let more = match refusal.reason {
            Reason::WrongSignature => signature::mistake(&message.payload, &self.keys).map(str::to_owned),
            Reason::TooLarge => Some(format!(
                "split it: fewer observations, or a waveform in blocks of one second, below {READING_BYTES_MAX} bytes"
            )),
            Reason::Malformed => malformed::field(&message.payload)
                .or_else(|| Some("docs/devices has every field of each form".to_owned())),
            _ => None,
        };
        let sentence = match more {
            Some(more) => format!("{}; {more}", refusal.detail),
            None => refusal.detail.clone(),
        };
        fault(refusal.reason.as_str(), sentence)
    }
}

/// The device was asked for numbers, and has neither sent them nor said that it does not have them.
fn silent(((device, boot), (count, first)): ((&DeviceId, BootId), (usize, u64))) -> Finding {
    fault(
        "resend",
        format!(
            "{device}, boot {boot}: the gateway asked for {count} numbers, {first} first, that were neither sent nor said to be \
             lost. Subscribe to cmd, send what is kept byte for byte, and name the rest on state: \
             \"lost\": {{\"boot\": .., \"ranges\": [[first, last]]}}"
        ),
    )
}

/// How it was published.
fn delivery(message: &Captured) -> Vec<Finding> {
    let mut findings = Vec::new();
    if message.qos.is_some_and(|qos| qos != 1) {
        findings.push(fault(
            "qos",
            "publish with QoS 1: with 0 nothing says whether it arrived, with 2 nothing is gained",
        ));
    }
    if message.retain == Some(true) {
        findings.push(fault(
            "retain",
            "publish readings without the retain flag; only `state` is retained",
        ));
    }
    findings
}

/// What the clock says of itself, and what it is worth.
fn clock(reading: &Reading, received_ms: i64) -> Option<Finding> {
    match reading.wall {
        None if reading.time_quality == TimeQuality::Synced => Some(advice(
            "clock",
            "time_quality is synced but there is no wall; a device without a clock says relative",
        )),
        Some(wall) if wall > received_ms.saturating_add(SKEW_FLAG_MS) => Some(advice(
            "clock",
            "wall is more than 5 minutes ahead, so its time is served as unknown; is it in milliseconds since 1970, UTC?",
        )),
        Some(wall) if wall < received_ms.saturating_sub(LAG_FLAG_MS) => Some(advice(
            "clock",
            "wall is more than 30 days behind, so its time is served as unknown; is it in milliseconds since 1970? Leave it \
             out while the clock is not set",
        )),
        _ => None,
    }
}

fn sequence(id: &ReadingId, place: Place) -> Option<Finding> {
    match place {
        Place::Next | Place::Repeated | Place::Late => None,
        Place::Ahead => Some(advice(
            "order",
            format!("{id} came before smaller numbers; it is a gap until they come"),
        )),
        Place::Reused => Some(fault(
            Reason::Equivocation.as_str(),
            format!(
                "number {} of this boot was used for another message; keep the bytes of a message and send them again as \
                     they are, and make the boot id anew at each start",
                id.seq
            ),
        )),
        Place::Leap => Some(fault(
            Reason::Implausible.as_str(),
            format!(
                "number {} leaves out more than {LEAP_MAX} others, and the gateway believes none that is so far ahead; count up \
                 by one within a boot",
                id.seq
            ),
        )),
        Place::OldBoot => Some(fault(
            "boot",
            "the counter of the boot id is not above that of the boot before; keep it in flash and count it up, durably, \
             before the first message of a start",
        )),
        Place::Backwards => Some(fault(
            "up-ms",
            "up_ms is smaller than that of a smaller number; it counts milliseconds since this boot, and never back",
        )),
    }
}

fn state(message: &Captured) -> Verdict {
    let mut findings = Vec::new();
    if message.payload.len() > STATE_BYTES_MAX {
        findings.push(fault(
            Reason::TooLarge.as_str(),
            format!("a state message has at most {STATE_BYTES_MAX} bytes"),
        ));
    }
    let said: Result<serde_json::Value, _> = serde_json::from_slice(&message.payload);
    let is_whole =
        |said: &serde_json::Value| said["up_ms"].is_null() || (said["up_ms"].is_u64() && said["boot"].is_string());
    if said.as_ref().is_ok_and(|said| !is_whole(said)) {
        findings.push(advice(
            "state",
            "up_ms is a whole number of milliseconds since this boot, and needs boot beside it; without both a device that has no \
             clock gets no times by it",
        ));
    }
    let is_said = said.is_ok_and(|said| said["online"].is_boolean());
    if !is_said && !message.payload.is_empty() {
        findings.push(advice(
            "state",
            "state is JSON with at least \"online\": true or false (docs/devices/answers.schema.json)",
        ));
    }
    Verdict {
        what: "state".to_owned(),
        findings,
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests;

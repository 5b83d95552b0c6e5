//! The topics of a gateway, as it and its devices see them: `vitalfog/v1/{gateway}/{device}/{channel}`.

use crate::{
    ids::{DeviceId, GatewayId},
    reading::{Reason, Refusal},
};

/// A device's state message, at most, in bytes.
pub const STATE_BYTES_MAX: usize = 4_096;

/// What a topic under a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Single measurements.
    Reading,
    /// Blocks of a waveform.
    Wave,
    /// Falls and alarms.
    Event,
    /// Whether the device is there: retained, and its will.
    State,
    /// Gateway to device: which sequence numbers are durable.
    Ack,
    /// Gateway to device: why a message was not taken.
    Error,
    /// Gateway to device: commands.
    Command,
}

impl Channel {
    const ALL: [Self; 7] = [
        Self::Reading,
        Self::Wave,
        Self::Event,
        Self::State,
        Self::Ack,
        Self::Error,
        Self::Command,
    ];

    /// The last level of the topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Wave => "wave",
            Self::Event => "event",
            Self::State => "state",
            Self::Ack => "ack",
            Self::Error => "error",
            Self::Command => "cmd",
        }
    }

    /// Whether signed readings arrive here.
    #[must_use]
    pub const fn carries_readings(self) -> bool {
        matches!(self, Self::Reading | Self::Wave | Self::Event)
    }
}

/// A topic of a gateway, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The device it belongs to.
    pub device: DeviceId,
    /// What it is for.
    pub channel: Channel,
}

impl Topic {
    /// Reads a topic name.
    ///
    /// # Errors
    /// [`Reason::WrongTopic`], with what a right one looks like.
    pub fn parse(gateway: &GatewayId, name: &str) -> Result<Self, Refusal> {
        let wrong = || {
            let shape = format!("topics here are vitalfog/v1/{gateway}/DEVICE/CHANNEL with a channel we know");
            Refusal::new(Reason::WrongTopic, shape)
        };
        let (device, channel) = name
            .strip_prefix(&prefix(gateway))
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(wrong)?;
        let channel = Channel::ALL
            .into_iter()
            .find(|known| known.as_str() == channel)
            .ok_or_else(wrong)?;
        Ok(Self {
            device: device.parse().map_err(|_| wrong())?,
            channel,
        })
    }

    /// The topic's name.
    #[must_use]
    pub fn name(&self, gateway: &GatewayId) -> String {
        format!("{}{}/{}", prefix(gateway), self.device, self.channel.as_str())
    }
}

/// What every topic of a gateway starts with.
#[must_use]
pub fn prefix(gateway: &GatewayId) -> String {
    format!("vitalfog/v1/{gateway}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_reads_back_as_it_was_written() {
        let home: GatewayId = "home-1".parse().expect("good");
        for channel in Channel::ALL {
            let topic = Topic {
                device: "oximeter-1".parse().expect("good"),
                channel,
            };
            assert_eq!(Topic::parse(&home, &topic.name(&home)), Ok(topic));
        }
    }

    #[test]
    fn another_gateways_or_a_strange_topic_is_refused() {
        let home: GatewayId = "home-1".parse().expect("good");
        for name in [
            "vitalfog/v1/home-2/oximeter-1/reading",
            "vitalfog/v1/home-1/oximeter-1",
            "vitalfog/v1/home-1/oximeter-1/reading/x",
            "vitalfog/v1/home-1/+/reading",
            "vitalfog/v1/home-1//reading",
            "vitalfog/v1/home-1/oximeter-1/secret",
            "",
        ] {
            assert_eq!(Topic::parse(&home, name).expect_err(name).reason, Reason::WrongTopic);
        }
    }
}

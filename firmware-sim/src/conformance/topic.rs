//! The topics of a gateway as a device sees them: `vitalfog/v1/{gateway}/{device}/{channel}`.

use record::{
    ids::{DeviceId, GatewayId},
    reading::{Reason, Refusal},
};

/// What stands at the end of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Reading,
    Wave,
    Event,
    State,
    Ack,
    Error,
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

    /// The last level.
    pub(super) const fn as_str(self) -> &'static str {
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
}

/// A topic, taken apart.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) device: DeviceId,
    pub(super) channel: Channel,
}

impl Topic {
    pub(super) fn parse(gateway: &GatewayId, name: &str) -> Result<Self, Refusal> {
        let wrong = || {
            let shape = format!(
                "topics here are vitalfog/v1/{gateway}/DEVICE/CHANNEL with a device name of a-z, 0-9 and '-', and one of \
                 reading, wave, event, state as channel"
            );
            Refusal::new(Reason::WrongTopic, shape)
        };
        let prefix = format!("vitalfog/v1/{gateway}/");
        let (device, channel) = name
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(wrong)?;
        let channel = Channel::ALL.into_iter().find(|known| known.as_str() == channel);
        Ok(Self {
            device: device.parse().map_err(|_| wrong())?,
            channel: channel.ok_or_else(wrong)?,
        })
    }
}

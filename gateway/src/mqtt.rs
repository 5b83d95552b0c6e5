//! Where devices' messages come in: an embedded broker, or a client of an outside one; both hand them to the one sink.

pub mod broker;
mod notice;
pub mod presence;
mod rate;
pub mod resend;
pub mod subscriber;

use std::{io, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use self::{
    broker::Broker,
    presence::Presence,
    resend::{Asker, Asking, Voice},
    subscriber::{LinkState, Subscriber},
};
use crate::{intake::Intake, login::Access, outbox::Outbox, transit::Sealed};

/// Which of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The broker in this process: PUBACK is sent when the reading is durable here.
    #[default]
    Embedded,
    /// Mosquitto, EMQX or another broker. Its PUBACK says nothing of this gateway, which publishes an acknowledgement of its
    /// own on `.../ack` when a reading is durable: devices must wait for that.
    External,
}

/// How devices reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which driver.
    pub driver: Driver,
    /// Whether messages in the clear are taken. Without it: at the embedded broker yes, at an outside one no, because its
    /// operator could read them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// A device that sends no reading for this long is shown as silent, in seconds.
    pub silent_after_s: u64,
    /// Numbers that are missing for this long are asked for, of a device that is there, in seconds; 0: by hand alone.
    pub resend_after_s: u64,
    /// The embedded broker.
    pub broker: broker::Config,
    /// The client of an outside broker.
    pub subscriber: subscriber::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::default(),
            sealed: None,
            silent_after_s: 900,
            resend_after_s: 10,
            broker: broker::Config::default(),
            subscriber: subscriber::Config::default(),
        }
    }
}

/// The driver's settings with everything it needs read from its files.
#[derive(Debug)]
pub enum Prepared {
    /// The embedded broker.
    Embedded(broker::Config, broker::Access),
    /// The client of an outside broker.
    External(subscriber::Config, Access),
}

impl Config {
    /// After which time without a reading a device is silent.
    #[must_use]
    pub const fn silent_after(&self) -> Duration {
        Duration::from_secs(self.silent_after_s)
    }

    /// What is demanded of messages.
    #[must_use]
    pub fn demand(&self) -> Sealed {
        let by_driver = match self.driver {
            Driver::Embedded => Sealed::Allowed,
            Driver::External => Sealed::Required,
        };
        self.sealed.unwrap_or(by_driver)
    }

    /// What works and should be looked at, each in a sentence.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.driver == Driver::External && self.demand() == Sealed::Allowed {
            let text = "mqtt.sealed = \"allowed\" with an outside broker: whoever operates it can read what devices send in the \
                        clear; take the line out when all of them seal";
            warnings.push(text.to_owned());
        }
        warnings
    }

    /// Reads the files of the chosen driver; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self) -> Result<Prepared, Vec<String>> {
        if self.silent_after_s == 0 {
            return Err(vec!["mqtt.silent_after_s must be above 0".to_owned()]);
        }
        match self.driver {
            Driver::Embedded => {
                let access = self.broker.prepare()?;
                Ok(Prepared::Embedded(self.broker.clone(), access))
            }
            Driver::External => {
                let access = self.subscriber.prepare()?;
                Ok(Prepared::External(self.subscriber.clone(), access))
            }
        }
    }
}

/// Why messages cannot come in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker cannot listen.
    #[error("the broker cannot listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Nor can what is behind its door.
    #[error("the broker cannot listen on this machine's own {listen}: {source}")]
    Inside {
        /// Where.
        listen: SocketAddr,
        /// Why.
        source: rmqtt::Error,
    },
    /// The client's settings are refused by its library.
    #[error("the MQTT client cannot be built: {0}")]
    Client(#[from] rumqttc::ConfigError),
}

/// The running driver.
#[derive(Debug)]
pub enum Mqtt {
    /// The embedded broker.
    Embedded(Broker),
    /// The client of an outside broker.
    External(Subscriber),
}

impl Mqtt {
    /// Starts the driver; the embedded broker listens when this returns.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start(prepared: Prepared, intake: Intake, presence: Presence) -> Result<Self, Error> {
        match prepared {
            Prepared::Embedded(config, access) => {
                Ok(Self::Embedded(Broker::start(config, access, intake, presence).await?))
            }
            Prepared::External(config, access) => {
                Ok(Self::External(Subscriber::start(config, access, (intake, presence))?))
            }
        }
    }

    /// What asks devices for numbers that are missing, and who has it ask by hand.
    pub fn asking(
        &self,
        config: &Config,
        (intake, outbox): (&Intake, Outbox),
        presence: Presence,
    ) -> (impl Future<Output = ()> + use<>, Asker) {
        let asking = Asking {
            gateway: intake.gateway().clone(),
            outbox,
            presence,
            voice: match self {
                Self::Embedded(broker) => Voice::Embedded(broker.sessions()),
                Self::External(subscriber) => Voice::External(subscriber.voice()),
            },
            after: (config.resend_after_s > 0).then(|| Duration::from_secs(config.resend_after_s)),
        };
        asking.start()
    }

    /// Who is connected.
    #[must_use]
    pub fn connected(&self) -> Connected {
        match self {
            Self::Embedded(broker) => Connected::Devices(broker.sessions()),
            Self::External(subscriber) => Connected::Broker(subscriber.link()),
        }
    }

    /// Resolves when the driver has ended by itself, which it must not.
    pub async fn ended(&mut self) {
        match self {
            Self::Embedded(broker) => broker.ended().await,
            Self::External(subscriber) => subscriber.ended().await,
        }
    }

    /// Takes no more messages.
    pub fn stop(&self) {
        match self {
            Self::Embedded(broker) => broker.stop(),
            Self::External(subscriber) => subscriber.stop(),
        }
    }
}

/// Who is connected: devices to the embedded broker, or this gateway to the outside one.
#[derive(Clone, Debug)]
pub enum Connected {
    /// Sessions of the embedded broker.
    Devices(broker::Sessions),
    /// The link to the outside broker.
    Broker(subscriber::Link),
}

impl Connected {
    /// How many connections there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Devices(sessions) => sessions.count(),
            Self::Broker(link) => usize::from(link.is_up()),
        }
    }

    /// The link to the outside broker, if there is one.
    #[must_use]
    pub fn link(&self) -> Option<LinkState> {
        match self {
            Self::Devices(_) => None,
            Self::Broker(link) => Some(link.state()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outside_broker_carries_sealed_messages_alone_unless_somebody_says_otherwise_and_is_warned() {
        let config = |text: &str| toml::from_str::<Config>(text).expect("parses");
        assert_eq!(config("").demand(), Sealed::Allowed);
        assert_eq!(config("sealed = \"required\"").demand(), Sealed::Required);
        let outside = config("driver = \"external\"");
        assert_eq!((outside.demand(), outside.warnings().len()), (Sealed::Required, 0));
        let lax = config("driver = \"external\"\nsealed = \"allowed\"");
        assert_eq!(lax.demand(), Sealed::Allowed);
        assert!(lax.warnings()[0].contains("mqtt.sealed"));
        assert!(config("sealed = \"allowed\"").warnings().is_empty());
        assert!(toml::from_str::<Config>("sealed = \"maybe\"").is_err());
    }
}

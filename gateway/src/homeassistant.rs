//! Shows the newest values of opted-in devices in the home's Home Assistant: MQTT discovery, retained, on its own broker.
//!
//! Off unless the configuration has the section, and for the devices that it names alone: values leave the seal here, by the
//! home's own wish, for whoever can read that broker. What is shown is durable; a value never gives way to an older one; what
//! may not be shown any more (revoked, not named any more) is taken away, also after a restart. The broker is the memory of what
//! was shown: it is read back at each connection.

mod board;
mod discovery;
mod line;

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use record::ids::{DeviceId, GatewayId};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use self::{
    board::{Board, ONLINE},
    line::{Heard, Line},
};
use crate::{directory::Directory, mqtt::presence::Presence, newest::Newest, outbox::now_ms, secret, tls};

/// How often what differs is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// What the broker says that stands there has come within this time.
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Words of the broker that wait, at most.
const HEARD_MAX: usize = 1_000;

/// Home Assistant's broker, and who is shown there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`; always TLS.
    pub address: String,
    /// The authority that signed the broker's certificate, PEM.
    pub ca: PathBuf,
    /// User name; it needs rights to `homeassistant/#` alone.
    pub user: String,
    /// A file with the password.
    pub password_file: PathBuf,
    /// Client id.
    pub client_id: String,
    /// What Home Assistant calls its discovery prefix.
    pub prefix: String,
    /// Whose values are shown. An empty list takes away what was shown before.
    pub devices: Vec<DeviceId>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "homeassistant.local:8883".to_owned(),
            ca: "homeassistant-ca.crt".into(),
            user: "vitalfog".to_owned(),
            password_file: "homeassistant.password".into(),
            client_id: "vitalfog-homeassistant".to_owned(),
            prefix: "homeassistant".to_owned(),
            devices: Vec::new(),
        }
    }
}

/// What is needed to log in, read from its files.
#[derive(Clone)]
pub struct Access {
    host: String,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
    password: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({}:{})", self.host, self.port)
    }
}

impl Config {
    /// Reads the files; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self) -> Result<Access, Vec<String>> {
        let mut faults = Vec::new();
        let address = self.address.rsplit_once(':');
        let address = address.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        if address.is_none() {
            faults.push(format!("homeassistant.address {:?} must be host:port", self.address));
        }
        let is_level = |text: &str| !text.is_empty() && !text.contains(['/', '+', '#']);
        if !is_level(&self.prefix) || self.client_id.is_empty() {
            faults
                .push("homeassistant: prefix must be one level of a topic, and client_id must not be empty".to_owned());
        }
        let tls =
            tls::client_of_authority(&self.ca, None).map_err(|fault| faults.push(format!("homeassistant.ca: {fault}")));
        let file = self.password_file.display();
        let password = secret::read(&self.password_file)
            .map_err(|e| faults.push(format!("homeassistant.password_file {file}: {e}")));
        match (address, tls, password) {
            (Some((host, port)), Ok(tls), Ok(password)) if faults.is_empty() => Ok(Access {
                host: host.to_owned(),
                port,
                tls: Arc::new(tls),
                password: password.trim_end().to_owned(),
            }),
            _ => Err(faults),
        }
    }

    /// The newest values of those that are shown.
    #[must_use]
    pub fn newest(&self) -> Newest {
        Newest::of(self.devices.iter().cloned().collect::<HashSet<_>>())
    }
}

/// The client's settings are refused by its library.
#[derive(Debug, thiserror::Error)]
#[error("the client of Home Assistant's broker cannot be built: {0}")]
pub struct Unusable(#[from] rumqttc::ConfigError);

/// Shows values, while the gateway runs.
#[derive(Debug)]
pub struct Export {
    line: Line,
    board: Board,
    directory: Directory,
    presence: Presence,
    stage: Stage,
}

/// How far the present connection is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Down,
    /// The broker says what stands there; at this time no more is waited for.
    ReadingBack(Instant),
    Up,
}

impl Export {
    /// To the broker of the configuration.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn of(
        (config, access): (&Config, &Access),
        gateway: &GatewayId,
        newest: Newest,
        (directory, presence): (Directory, Presence),
    ) -> Result<Self, Unusable> {
        let board = Board::of(gateway, &config.prefix, newest);
        Ok(Self {
            line: Line::of(config, access, &board.topics)?,
            board,
            directory,
            presence,
            stage: Stage::Down,
        })
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let (sender, mut heard) = mpsc::channel(HEARD_MAX);
        let listening = self.line.listen(sender);
        let showing = async {
            let mut tick = interval(PUBLISH_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    Some(heard) = heard.recv() => self.hear(heard),
                    _ = tick.tick() => self.show(),
                }
            }
        };
        tokio::join!(listening, showing);
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected => {
                self.board.forget();
                self.stage = Stage::ReadingBack(Instant::now() + READ_BACK_TIMEOUT);
                metrics::gauge!("gateway_homeassistant_connected").set(1.0);
            }
            // All that stands there was said before the echo of what was published after it.
            Heard::Subscribed => self.line.call(&self.board.topics.echo()),
            Heard::Lost => {
                self.stage = Stage::Down;
                metrics::gauge!("gateway_homeassistant_connected").set(0.0);
            }
            Heard::Message { topic, .. } if topic == self.board.topics.echo() => self.stage = Stage::Up,
            Heard::Message { topic, text, .. } if topic == self.board.topics.birth() => {
                if *text == *ONLINE.as_bytes() {
                    let (directory, presence, newest) = (&self.directory, &self.presence, self.board.newest.clone());
                    self.board
                        .tell_all_again(|device| is_there((directory, presence, &newest), device));
                }
            }
            Heard::Message {
                topic,
                text,
                is_kept: true,
            } => self.board.found(&topic, &text, now_ms()),
            Heard::Message { .. } => {}
        }
    }

    fn show(&mut self) {
        match self.stage {
            Stage::Down => return,
            Stage::ReadingBack(until) if Instant::now() < until => return,
            Stage::ReadingBack(_) | Stage::Up => self.stage = Stage::Up,
        }
        let (directory, presence, newest) = (&self.directory, &self.presence, self.board.newest.clone());
        let changes = self
            .board
            .changes(|device| is_there((directory, presence, &newest), device));
        for change in changes {
            // What does not fit now differs in the next round, too.
            if !self.line.publish(&change) {
                return;
            }
            self.board.published(change);
        }
    }
}

/// Whether a device can be reached; `None` for one that is not to be shown.
fn is_there((directory, presence, newest): (&Directory, &Presence, &Newest), device: &DeviceId) -> Option<bool> {
    let is_enrolled = directory.knows(device) && !directory.is_out(device);
    (is_enrolled && newest.may_show(device)).then(|| presence.is_there(device))
}

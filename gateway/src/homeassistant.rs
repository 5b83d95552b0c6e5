//! Shows the newest values of opted-in devices in the home's Home Assistant: MQTT discovery, retained, on its own broker.
//!
//! Off unless the configuration has the section, and for the devices that it names alone: values leave the seal here, by the
//! home's own wish, for whoever can read that broker. What is shown is durable; a value never gives way to an older one; what
//! may not be shown any more (revoked, not named any more) is taken away, also after a restart. The broker is the memory of what
//! was shown: it is read back at each connection.

mod board;
mod discovery;
mod line;

use std::{collections::HashSet, path::PathBuf, time::Duration};

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
use crate::{directory::Directory, login::Access, mqtt::presence::Presence, newest::Newest, outbox::now_ms, tls};

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
    /// Client id; absent: one that is made of the gateway's name, so that the gateways of one broker have one each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
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
            client_id: None,
            prefix: "homeassistant".to_owned(),
            devices: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the files; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self) -> Result<Access, Vec<String>> {
        let mut faults = Vec::new();
        let is_level = |text: &str| !text.is_empty() && !text.contains(['/', '+', '#']);
        if !is_level(&self.prefix) {
            faults.push(
                "homeassistant.prefix must be one level of a topic, as Home Assistant's discovery has it".to_owned(),
            );
        }
        if self.client_id.as_ref().is_some_and(String::is_empty) {
            faults.push(
                "homeassistant.client_id must not be empty: leave it out, and it is made of the gateway's name"
                    .to_owned(),
            );
        }
        let tls = tls::client_of_authority(&self.ca, None).map_err(|fault| format!("homeassistant.ca: {fault}"));
        let password_file = Some(self.password_file.as_path());
        let access = Access::read("homeassistant", &self.address, tls, password_file, &mut faults);
        access.filter(|_| faults.is_empty()).ok_or(faults)
    }

    /// The client id of this gateway. A broker ends the session of whoever comes under another one's, so no two may have the same.
    fn client_id(&self, gateway: &GatewayId) -> String {
        let own = || format!("vitalfog-homeassistant-{gateway}");
        self.client_id.clone().unwrap_or_else(own)
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
            line: Line::of((config, gateway), access, &board.topics)?,
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

//! The settings of the outside broker's client, and what is read from the files they name.

use std::{
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    sync::Arc,
};

use rumqttc::{AckMode, MqttOptions, TlsConfiguration, Transport};
use serde::{Deserialize, Serialize};

use super::{
    claimant::Config as ClaimsConfig,
    lane::Lane,
    session::{NothingUnderWay, OUTGOING_MAX},
};
use crate::{login::Access, tls};

/// Requests to the client's event loop that wait, at most.
const REQUESTS_MAX: usize = 1_024;
/// Keep-alive, in seconds.
const KEEP_ALIVE_S: u16 = 30;

/// The outside broker and how this gateway logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`; always TLS.
    pub address: String,
    /// The authority that signed the broker's certificate, PEM.
    pub ca: PathBuf,
    /// User name; needed with a password, and not looked at by a broker that goes by the certificate.
    pub user: String,
    /// A file with the password; none: the certificate alone logs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The certificate that the gateway presents, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<PathBuf>,
    /// Client id of the session for single values and states; those for alarms, waveforms and claims have the same with `.alarms`,
    /// `.waves` and `.claims` behind it. The broker keeps the sessions under them.
    pub client_id: String,
    /// Single values and states that the broker may send before an acknowledgement.
    pub receive_max: NonZeroU16,
    /// Alarms that it may.
    pub alarms_receive_max: NonZeroU16,
    /// Waveforms that it may.
    pub waves_receive_max: NonZeroU16,
    /// Largest packet that is received, in bytes: a broker keeps larger ones back and says so to nobody.
    pub packet_bytes_max: u32,
    /// How long the broker keeps the sessions while the gateway is away, in seconds.
    pub session_expiry_s: u32,
    /// Messages a second that are taken of a device; what is above is not taken, and its device sends it again.
    pub device_messages_per_s_max: NonZeroU32,
    /// Messages that are taken at once after a pause, e.g. what a device stored without a connection.
    pub device_burst_messages_max: NonZeroU32,
    /// Messages of a device that are taken besides, each time the gateway has connected anew: what the broker kept meanwhile.
    pub device_backlog_messages_max: u32,
    /// How a new device with a printed code reaches the broker; without it there are no codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<ClaimsConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "localhost:8883".to_owned(),
            ca: "mqtt-ca.crt".into(),
            user: "gateway".to_owned(),
            password_file: None,
            certificate: None,
            private_key: None,
            client_id: "vitalfog-gateway".to_owned(),
            receive_max: const { NonZeroU16::new(256).expect("not zero") },
            alarms_receive_max: const { NonZeroU16::new(64).expect("not zero") },
            waves_receive_max: const { NonZeroU16::new(64).expect("not zero") },
            packet_bytes_max: 128 << 10,
            session_expiry_s: 7 * 24 * 3_600,
            device_messages_per_s_max: const { NonZeroU32::new(50).expect("not zero") },
            device_burst_messages_max: const { NonZeroU32::new(500).expect("not zero") },
            device_backlog_messages_max: 10_000,
            claims: None,
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
        if self.client_id.is_empty() {
            faults
                .push("mqtt.subscriber.client_id must not be empty: the broker keeps the session under it".to_owned());
        }
        let identity = match (&self.certificate, &self.private_key) {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            (None, None) => None,
            _ => {
                faults
                    .push("mqtt.subscriber: certificate and private_key belong together: set both or none".to_owned());
                None
            }
        };
        if identity.is_none() && self.password_file.is_none() {
            faults.push(
                "mqtt.subscriber: nothing to log in with: set certificate and private_key, or user and password_file"
                    .to_owned(),
            );
        }
        if self.password_file.is_some() && self.user.is_empty() {
            faults.push("mqtt.subscriber: password_file needs user".to_owned());
        }
        let tls = tls::client_of_authority(&self.ca, identity)
            .map_err(|fault| format!("mqtt.subscriber.ca, certificate or private_key: {fault}"));
        let password_file = self.password_file.as_deref();
        let access = Access::read("mqtt.subscriber", &self.address, tls, password_file, &mut faults);
        faults.extend(self.claims.iter().flat_map(ClaimsConfig::faults));
        access.filter(|_| faults.is_empty()).ok_or(faults)
    }

    /// How one of the sessions is opened.
    pub(super) fn options(&self, access: &Access, lane: Lane) -> MqttOptions {
        let client_id = lane.client_id(&self.client_id);
        let mut options = MqttOptions::new(client_id, (access.host.as_str(), access.port));
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(
            &access.tls,
        ))));
        if let Some(password) = &access.password {
            options.set_credentials(&self.user, password.clone());
        } else if !self.user.is_empty() {
            options.set_username(&self.user);
        }
        options.set_keep_alive(KEEP_ALIVE_S);
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(self.session_expiry_s));
        options.set_session_store(NothingUnderWay {
            session_expiry_s: self.session_expiry_s,
        });
        options.set_outgoing_inflight_upper_limit(OUTGOING_MAX);
        options.set_ack_mode(AckMode::Manual);
        options.set_receive_maximum(Some(lane.receive_max(self)));
        options.set_max_packet_size(Some(self.packet_bytes_max));
        options.set_request_channel_capacity(REQUESTS_MAX);
        options
    }
}

//! The embedded broker: MQTT 3.1.1 and 5 over TLS. A PUBACK leaves when the sink says that the message is durable.
//!
//! What the library does with large packets was measured, and decides `packet_bytes_max`: a packet above the limit ends the
//! connection before its topic is read, and an MQTT 5 client that was told the limit does not even send it. So the limit is
//! well above what a reading may have: a giant message is received, quarantined as `too-large` without its bytes, and its
//! sender is told; only what is above the limit costs the connection, and is counted all the same.

mod hooks;
mod retained;
mod rights;

use std::{fmt, fs, io::BufReader, net::SocketAddr, path::PathBuf, time::Duration};

use rmqtt::{
    context::ServerContext,
    net::{Builder, Listener},
    server::MqttServer,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

pub use self::rights::{User, Users};
use self::{hooks::Hooks, retained::States};
use super::Error;
use crate::intake::Intake;

/// The one listener's number inside the library.
const LISTENER: u16 = 1;
/// Handshakes at a time, at most.
const HANDSHAKES_MAX: usize = 64;
/// A connection that does not finish TLS and CONNECT within this time is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not read for this long is dropped.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A session outlives its connection by this time, at most.
const SESSION_EXPIRY_MAX: Duration = Duration::from_secs(3_600);
/// Messages queued for one client, at most.
const QUEUED_MAX: usize = 100;
/// Longest client id.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// Topic levels, at most; ours have five.
const TOPIC_LEVELS_MAX: usize = 8;
/// Subscriptions of one client, at most.
const SUBSCRIPTIONS_MAX: usize = 16;

/// Where the broker listens and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address; always TLS.
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// Who may connect: a JSON list of users.
    pub users: PathBuf,
    /// Largest packet that is received at all, in bytes.
    pub packet_bytes_max: u32,
    /// Sessions, at most.
    pub sessions_max: u32,
    /// Messages a client may have unacknowledged.
    pub in_flight_max: std::num::NonZeroU16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 18830)),
            certificate: "mqtt.crt".into(),
            private_key: "mqtt.key".into(),
            users: "users.json".into(),
            packet_bytes_max: 2 << 20,
            sessions_max: 1_000,
            in_flight_max: const { std::num::NonZeroU16::new(20).expect("not zero") },
        }
    }
}

impl Config {
    /// Reads the users and tries certificate and key; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self) -> Result<Users, Vec<String>> {
        let mut faults = Vec::new();
        if let Err(fault) = self.try_identity() {
            faults.push(format!("mqtt.broker: certificate {} and its key: {fault}", self.certificate.display()));
        }
        let users = fs::File::open(&self.users)
            .map_err(|e| e.to_string())
            .and_then(|file| serde_json::from_reader(BufReader::new(file)).map_err(|e| e.to_string()))
            .and_then(Users::of)
            .map_err(|fault| faults.push(format!("mqtt.broker.users {}: {fault}", self.users.display())));
        match users {
            Ok(users) if faults.is_empty() => Ok(users),
            _ => Err(faults),
        }
    }

    fn try_identity(&self) -> Result<(), String> {
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from_pem_file(&self.private_key)
            .map_err(|e| format!("{}: {e}", self.private_key.display()))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let made = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        made.map(|_| ()).map_err(|e| e.to_string())
    }

    fn bind(&self) -> rmqtt::Result<Listener> {
        Builder::new()
            .name("devices")
            .laddr(self.listen)
            .reuseaddr(Some(true))
            .nodelay(true)
            .tls_cert(self.certificate.to_str())
            .tls_key(self.private_key.to_str())
            .allow_anonymous(false)
            .max_connections(usize::try_from(self.sessions_max).unwrap_or(usize::MAX))
            .max_handshaking_limit(HANDSHAKES_MAX)
            .handshake_timeout(HANDSHAKE_TIMEOUT)
            .send_timeout(SEND_TIMEOUT)
            .max_packet_size(self.packet_bytes_max)
            .max_inflight(self.in_flight_max)
            .max_mqueue_len(QUEUED_MAX)
            .max_clientid_len(CLIENT_ID_BYTES_MAX)
            .max_topic_levels(TOPIC_LEVELS_MAX)
            .max_subscriptions(SUBSCRIPTIONS_MAX)
            .max_session_expiry_interval(SESSION_EXPIRY_MAX)
            .session_expiry_interval(SESSION_EXPIRY_MAX)
            .bind()?
            .tls()
    }
}

/// The running broker.
#[derive(Debug)]
pub struct Broker {
    task: JoinHandle<()>,
    sessions: Sessions,
    listen: SocketAddr,
}

impl Broker {
    /// Starts it; it listens when this returns.
    pub(super) async fn start(config: Config, users: Users, intake: Intake) -> Result<Self, Error> {
        let failed = |source| Error::Listen { listen: config.listen, source };
        let listener = config.bind().map_err(failed)?;
        let listen = listener.local_addr().map_err(failed)?;
        let context = ServerContext::new()
            .task_exec_workers(HANDSHAKES_MAX)
            .task_exec_queue_max(HANDSHAKES_MAX * 4)
            // Its load check refuses devices when the machine is busy with something else.
            .busy_check_enable(false)
            .mqtt_max_sessions(isize::try_from(config.sessions_max).unwrap_or(isize::MAX))
            .build()
            .await;
        *context.extends.retain_mut().await = Box::new(States::default());
        Hooks::register(&context, users, intake).await;
        let server = MqttServer::new(context.clone()).listener_by_id(listener, LISTENER).build();
        let task = tokio::spawn(async move {
            // It serves until the task is dropped; the caller treats any end as a failure.
            let _ended = server.run().await;
        });
        tracing::info!(%listen, "devices may connect");
        Ok(Self { task, sessions: Sessions(context), listen })
    }

    /// Where it listens: the port, if any was asked for.
    #[must_use]
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(super) fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    pub(super) async fn ended(&mut self) {
        // Whether it returned or was cancelled: it ended.
        let _ended = (&mut self.task).await;
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

/// The connected devices.
#[derive(Clone)]
pub struct Sessions(ServerContext);

impl Sessions {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::try_from(self.0.connections.count()).unwrap_or(0)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", self.count())
    }
}

//! The embedded broker: MQTT 3.1.1 and 5 over TLS. A PUBACK leaves when the sink says that the message is durable.
//!
//! What the library does with large packets was measured, and decides `packet_bytes_max`: a packet above the limit ends the
//! connection before its topic is read, and an MQTT 5 client that was told the limit does not even send it. So the limit is
//! well above what a reading may have: a giant message is received, quarantined as `too-large` without its bytes, and its
//! sender is told; only what is above the limit costs the connection, and is counted all the same.

mod certificate;
mod dismissal;
mod door;
mod hooks;
mod logins;
mod quota;
mod retained;
mod rights;
mod voice;

use std::{
    fmt, fs,
    io::BufReader,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rmqtt::{
    context::ServerContext,
    net::{Builder, Listener},
    server::MqttServer,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use self::rights::{User, Users};
use self::{
    door::{Door, Limits},
    hooks::Hooks,
    logins::Logins,
    quota::Quota,
    retained::States,
};
use super::{Error, presence::Presence, rate::Rates};
use crate::{intake::Intake, port, tls};

/// The one listener's number inside the library.
const LISTENER: u16 = 1;
/// Handshakes at a time, at most.
const HANDSHAKES_MAX: usize = 64;
/// The library's own listener: nobody reaches it but through the [`Door`].
const INSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
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
    /// The authority of the devices' certificates, PEM. A device that presents one needs no password: the common name in it is
    /// its user and its client id. Without this nobody is asked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether passwords alone do not open.
    pub require_certificate: bool,
    /// Largest packet that is received at all, in bytes.
    pub packet_bytes_max: u32,
    /// Sessions, at most.
    pub sessions_max: u32,
    /// Of them of one user, at most; they count while they exist, also without a connection.
    pub sessions_per_user_max: usize,
    /// Connections that are not logged in, at most.
    pub unauthenticated_max: usize,
    /// Of them from one address, at most.
    pub unauthenticated_per_address_max: usize,
    /// A connection that is not logged in after this time is dropped, in milliseconds.
    pub login_timeout_ms: u64,
    /// Messages a client may have unacknowledged.
    pub in_flight_max: std::num::NonZeroU16,
    /// Messages a second that a device may publish; what is above is answered with 0x97, and the device keeps it.
    pub device_messages_per_s_max: std::num::NonZeroU32,
    /// Messages that it may publish at once after a pause, e.g. what it stored without a connection.
    pub device_burst_messages_max: std::num::NonZeroU32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 18830)),
            certificate: "mqtt.crt".into(),
            private_key: "mqtt.key".into(),
            users: "users.json".into(),
            client_ca: None,
            require_certificate: false,
            packet_bytes_max: 2 << 20,
            sessions_max: 1_000,
            sessions_per_user_max: 100,
            unauthenticated_max: 512,
            unauthenticated_per_address_max: 128,
            login_timeout_ms: 10_000,
            in_flight_max: const { std::num::NonZeroU16::new(20).expect("not zero") },
            device_messages_per_s_max: const { std::num::NonZeroU32::new(50).expect("not zero") },
            device_burst_messages_max: const { std::num::NonZeroU32::new(500).expect("not zero") },
        }
    }
}

/// Who may connect, read from the files.
#[derive(Clone, Debug)]
pub struct Access {
    users: Users,
    tls: Arc<rustls::ServerConfig>,
}

impl Config {
    /// Reads the users, certificate and key; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self) -> Result<Access, Vec<String>> {
        let mut faults = Vec::new();
        let at_least_one = [
            self.sessions_per_user_max,
            self.unauthenticated_max,
            self.unauthenticated_per_address_max,
        ];
        if at_least_one.contains(&0) || self.login_timeout_ms == 0 {
            let keys =
                "sessions_per_user_max, unauthenticated_max, unauthenticated_per_address_max and login_timeout_ms";
            faults.push(format!("mqtt.broker: {keys} must be above 0"));
        }
        if self.require_certificate && self.client_ca.is_none() {
            faults.push("mqtt.broker: require_certificate needs client_ca, the authority of the devices".to_owned());
        }
        let identity = (self.certificate.as_path(), self.private_key.as_path());
        let tls = tls::server_of_devices(identity, self.client_ca.as_deref(), self.require_certificate)
            .map_err(|fault| faults.push(format!("mqtt.broker: certificate, private_key or client_ca: {fault}")));
        let users = fs::File::open(&self.users)
            .map_err(|e| e.to_string())
            .and_then(|file| serde_json::from_reader(BufReader::new(file)).map_err(|e| e.to_string()))
            .and_then(Users::of)
            .map_err(|fault| faults.push(format!("mqtt.broker.users {}: {fault}", self.users.display())));
        match (users, tls) {
            (Ok(users), Ok(tls)) if faults.is_empty() => Ok(Access {
                users,
                tls: Arc::new(tls),
            }),
            _ => Err(faults),
        }
    }

    const fn limits(&self) -> Limits {
        Limits {
            total_max: self.unauthenticated_max,
            per_address_max: self.unauthenticated_per_address_max,
            login_timeout: Duration::from_millis(self.login_timeout_ms),
        }
    }

    fn bind(&self) -> rmqtt::Result<Listener> {
        Builder::new()
            .name("devices")
            .laddr(INSIDE)
            .nodelay(true)
            .allow_anonymous(false)
            .max_connections(usize::try_from(self.sessions_max).unwrap_or(usize::MAX))
            .max_handshaking_limit(HANDSHAKES_MAX)
            .handshake_timeout(Duration::from_millis(self.login_timeout_ms))
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
            .tcp()
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
    pub(super) async fn start(
        config: Config,
        access: Access,
        intake: Intake,
        presence: Presence,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            listen: config.listen,
            source,
        };
        let inside = |source| Error::Inside { listen: INSIDE, source };
        let listener = config.bind().map_err(inside)?;
        let library = listener.local_addr().map_err(inside)?;
        let tls = TlsAcceptor::from(access.tls);
        let devices = port::listen(config.listen).await.map_err(failed)?;
        let door = Door::at(devices, library, tls, config.limits());
        let listen = door.listen().map_err(failed)?;
        let context = ServerContext::new()
            .task_exec_workers(HANDSHAKES_MAX)
            .task_exec_queue_max(HANDSHAKES_MAX * 4)
            // Its load check refuses devices when the machine is busy with something else.
            .busy_check_enable(false)
            .mqtt_max_sessions(isize::try_from(config.sessions_max).unwrap_or(isize::MAX))
            .build()
            .await;
        *context.extends.retain_mut().await = Box::new(States::default());
        let quota = Quota::of(config.sessions_per_user_max);
        let rates = Rates::of(
            config.device_messages_per_s_max.get(),
            config.device_burst_messages_max.get(),
        );
        let sessions = Sessions(context.clone());
        let logins = Logins::new(access.users, intake.directory().clone());
        let dismissal = dismissal::run(sessions.clone(), logins.clone(), intake.directory().clone());
        Hooks::register(&context, (logins, quota, door.guests(), rates), (intake, presence)).await;
        let server = MqttServer::new(context).listener_by_id(listener, LISTENER).build();
        let task = tokio::spawn(async move {
            // They serve until the task is dropped; the caller treats any end as a failure.
            tokio::select! {
                _ended = server.run() => {}
                () = door.run() => {}
                () = dismissal => {}
            }
        });
        tracing::info!(%listen, "devices may connect");
        Ok(Self { task, sessions, listen })
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
    const fn context(&self) -> &ServerContext {
        &self.0
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{outbox::tests::Home, secret};
    use aws_lc_rs::digest;
    use rumqttc::{
        AsyncClient, Event, MqttOptions, Packet, PubAckReason, PublishOptions, PublishResult, QoS, TlsConfiguration,
        Transport,
    };
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::mpsc,
        time::{sleep, timeout},
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    const PATIENCE: Duration = Duration::from_secs(10);
    const OWN: &str = "vitalfog/v1/home-1/oximeter-1/reading";

    /// A broker in front of a real outbox, with a certificate of its own.
    struct House {
        home: Home,
        broker: Broker,
        tls: Arc<rustls::ClientConfig>,
        _folder: TempDir,
    }

    fn user(name: &str, device: Option<&str>) -> User {
        let password = digest::digest(&digest::SHA256, format!("{name}-pw").as_bytes());
        let device = device.map(|d| d.parse().expect("good"));
        User {
            user: name.to_owned(),
            password_sha256: Some(hex::encode(password)),
            device,
        }
    }

    async fn house(packet_bytes_max: u32) -> House {
        house_with(|config| config.packet_bytes_max = packet_bytes_max).await
    }

    async fn house_with(change: impl FnOnce(&mut Config)) -> House {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |name: &str| folder.path().join(name);
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("makes");
        fs::write(path("mqtt.crt"), own.cert.pem()).expect("writes");
        secret::tests::write(&path("mqtt.key"), own.signing_key.serialize_pem());
        let users = [
            user("oximeter", Some("oximeter-1")),
            user("scale", Some("scale-1")),
            user("home", None),
        ];
        fs::write(path("users.json"), serde_json::to_string(&users).expect("encodes")).expect("writes");
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            certificate: path("mqtt.crt"),
            private_key: path("mqtt.key"),
            users: path("users.json"),
            ..Config::default()
        };
        change(&mut config);
        let access = config.prepare().expect("good");
        let home = Home::open();
        let tls = Arc::new(tls::client_of_authority(&config.certificate, None).expect("good"));
        let presence = Presence::of(home.intake.clone(), Duration::from_secs(1));
        let broker = Broker::start(config, access, home.intake.clone(), presence)
            .await
            .expect("listens");
        House {
            home,
            broker,
            tls,
            _folder: folder,
        }
    }

    impl House {
        fn client(&self, user: &str, password: &str) -> (AsyncClient, mpsc::Receiver<Packet>) {
            let mut options = MqttOptions::new(format!("{user}-client"), ("localhost", self.broker.listen().port()));
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(
                &self.tls,
            ))));
            options.set_credentials(user, password.to_owned());
            let (client, mut events) = AsyncClient::builder(options).build();
            let (sender, packets) = mpsc::channel(100);
            tokio::spawn(async move {
                // The first error ends it: a test sees what one connection saw.
                while let Ok(event) = events.poll().await {
                    if let Event::Incoming(packet) = event
                        && sender.send(packet).await.is_err()
                    {
                        return;
                    }
                }
            });
            (client, packets)
        }

        /// The reason code of the PUBACK.
        async fn publish(&self, user: &str, topic: &str, payload: &[u8]) -> PubAckReason {
            let (client, mut packets) = self.client(user, &format!("{user}-pw"));
            tokio::spawn(async move { while packets.recv().await.is_some() {} });
            let notice = client
                .publish_tracked(topic, payload.to_vec(), PublishOptions::at_least_once())
                .await;
            match timeout(PATIENCE, notice.expect("queued").wait_async())
                .await
                .expect("answered")
            {
                Ok(PublishResult::Qos1(ack)) => ack.reason,
                other => panic!("{other:?}"),
            }
        }

        async fn quarantined(&self, reason: &str) -> u64 {
            let report = self.home.outbox.report().await.expect("runs");
            report.quarantined.by_reason.get(reason).copied().unwrap_or(0)
        }

        /// A connection that has said nothing yet.
        async fn silent(&self) -> std::io::Result<TlsStream<TcpStream>> {
            let tcp = TcpStream::connect(self.broker.listen()).await?;
            let name = "localhost".try_into().expect("a name");
            TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await
        }

        /// A connection that speaks MQTT 3.1.1 by hand, logged in.
        async fn old_client(&self, user: &str) -> TlsStream<TcpStream> {
            let mut stream = self.silent().await.expect("handshake");
            let mut body = b"\0\x04MQTT\x04\xc2\0\x3c".to_vec();
            for text in [format!("{user}-old"), user.to_owned(), format!("{user}-pw")] {
                body.extend((text.len() as u16).to_be_bytes());
                body.extend(text.as_bytes());
            }
            stream
                .write_all(&[&[0x10, body.len() as u8], &body[..]].concat())
                .await
                .expect("sends");
            assert_eq!(read(&mut stream).await, [0x20, 2, 0, 0], "CONNACK: accepted");
            stream
        }
    }

    async fn read(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
        let mut buffer = [0; 64];
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("answered");
        buffer[..read.unwrap_or(0)].to_vec()
    }

    async fn publish_old(stream: &mut TlsStream<TcpStream>, topic: &str, payload: &[u8]) -> Vec<u8> {
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend(topic.as_bytes());
        body.extend(7u16.to_be_bytes());
        body.extend(payload);
        let length = [(body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8];
        stream
            .write_all(&[&[0x32], &length[..], &body[..]].concat())
            .await
            .expect("sends");
        read(stream).await
    }

    #[tokio::test]
    async fn a_puback_means_that_the_reading_is_on_the_disk() {
        let house = house(2 << 20).await;
        let reading = house.home.oximeter.reading(1, 97);
        assert_eq!(
            house.publish("oximeter", OWN, reading.as_bytes()).await,
            PubAckReason::Success
        );
        // What a power cut at this moment would leave.
        let report = house.home.after_power_cut().await;
        assert_eq!((report.counters.acknowledged, report.spooled_readings), (1, 1));
        assert_eq!(
            house.publish("home", OWN, reading.as_bytes()).await,
            PubAckReason::Success,
            "a repetition"
        );
        assert_eq!(house.home.outbox.report().await.expect("runs").counters.duplicates, 1);
    }

    #[tokio::test]
    async fn a_device_that_is_too_fast_keeps_its_reading_and_the_others_are_heard() {
        let house = house_with(|config| {
            config.device_messages_per_s_max = std::num::NonZeroU32::MIN;
            config.device_burst_messages_max = std::num::NonZeroU32::new(2).expect("not zero");
        })
        .await;
        let (client, mut packets) = house.client("oximeter", "oximeter-pw");
        tokio::spawn(async move { while packets.recv().await.is_some() {} });
        let mut notices = Vec::new();
        for seq in 1..=6 {
            let payload = house.home.oximeter.reading(seq, 97).as_bytes().to_vec();
            let notice = client.publish_tracked(OWN, payload, PublishOptions::at_least_once());
            notices.push(notice.await.expect("queued"));
        }
        let mut answers = Vec::new();
        for notice in notices {
            match timeout(PATIENCE, notice.wait_async()).await.expect("answered") {
                Ok(PublishResult::Qos1(ack)) => answers.push(ack.reason),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answers[..2], [PubAckReason::Success; 2]);
        assert!(answers[2..].contains(&PubAckReason::QuotaExceeded), "{answers:?}");
        let noise = house.publish("scale", "vitalfog/v1/home-1/scale-1/reading", b"x").await;
        assert_eq!(
            noise,
            PubAckReason::PayloadFormatInvalid,
            "the scale has a rate of its own"
        );
        let taken = answers
            .iter()
            .filter(|answer| **answer == PubAckReason::Success)
            .count();
        let report = house.home.outbox.report().await.expect("runs");
        assert_eq!(
            report.counters.acknowledged, taken as u64,
            "what was not taken is in no list"
        );
        // A client of MQTT 3.1.1 would not understand: it is disconnected without a PUBACK.
        let mut old = house.old_client("oximeter").await;
        let reading = house.home.oximeter.reading(9, 97);
        assert_eq!(publish_old(&mut old, OWN, reading.as_bytes()).await, [0; 0]);
    }

    #[tokio::test]
    async fn a_wrong_password_or_none_is_refused() {
        let house = house(2 << 20).await;
        for (user, password) in [("oximeter", "wrong"), ("nobody", "nobody-pw"), ("", "")] {
            let (_client, mut packets) = house.client(user, password);
            let first = timeout(PATIENCE, packets.recv()).await.expect("ends");
            assert!(!matches!(first, Some(Packet::ConnAck(ack)) if ack.code == rumqttc::ConnectReturnCode::Success));
        }
        assert_eq!(house.broker.sessions().count(), 0);
    }

    #[tokio::test]
    async fn a_device_cannot_publish_under_another_devices_topic() {
        let house = house(2 << 20).await;
        let reading = house.home.oximeter.reading(1, 97);
        assert_eq!(
            house.publish("scale", OWN, reading.as_bytes()).await,
            PubAckReason::NotAuthorized
        );
        for topic in [
            "vitalfog/v1/home-1/scale-1/ack",
            "vitalfog/v1/home-2/scale-1/reading",
            "elsewhere",
        ] {
            assert_eq!(
                house.publish("scale", topic, b"x").await,
                PubAckReason::NotAuthorized,
                "{topic}"
            );
        }
        assert_eq!(house.quarantined("wrong-topic").await, 4);
        let mut old = house.old_client("scale").await;
        assert_eq!(
            publish_old(&mut old, OWN, reading.as_bytes()).await,
            b"",
            "3.1.1 is disconnected, not acknowledged"
        );
    }

    #[tokio::test]
    async fn an_implausible_reading_is_answered_with_its_reason_also_on_the_error_topic() {
        let house = house(2 << 20).await;
        let (listener, mut packets) = house.client("home", "home-pw");
        listener
            .subscribe("vitalfog/v1/home-1/+/error", QoS::AtLeastOnce)
            .await
            .expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::SubAck(_)) {}
        let absurd = house.home.oximeter.reading(1, 970);
        let refused = house.publish("oximeter", OWN, absurd.as_bytes()).await;
        assert_eq!(refused, PubAckReason::PayloadFormatInvalid);
        let told = timeout(PATIENCE, packets.recv())
            .await
            .expect("told")
            .expect("connected");
        let Packet::Publish(told) = told else {
            panic!("{told:?}")
        };
        assert_eq!(&told.topic[..], b"vitalfog/v1/home-1/oximeter-1/error");
        assert!(
            std::str::from_utf8(&told.payload)
                .expect("text")
                .contains("implausible")
        );
        let mut old = house.old_client("oximeter").await;
        let puback = publish_old(&mut old, OWN, house.home.oximeter.reading(2, 970).as_bytes()).await;
        assert_eq!(
            puback,
            [0x40, 2, 0, 7],
            "in quarantine it is taken: 3.1.1 gets its PUBACK"
        );
        assert_eq!(house.quarantined("implausible").await, 2);
    }

    #[tokio::test]
    async fn a_revoked_devices_session_ends_and_it_does_not_come_in_again() {
        let house = house(2 << 20).await;
        let (_client, mut packets) = house.client("oximeter", "oximeter-pw");
        let (_other, mut others) = house.client("scale", "scale-pw");
        for packets in [&mut packets, &mut others] {
            let first = timeout(PATIENCE, packets.recv()).await.expect("answered");
            assert!(matches!(first, Some(Packet::ConnAck(_))));
        }
        let oximeter = &house.home.oximeter;
        let revoked = crate::standing::tests::device(&oximeter.key.public(), Some(7));
        house.home.intake.directory().obey(crate::standing::Standing {
            revoked: None,
            devices: [(oximeter.id.clone(), revoked)].into(),
        });
        let ended = async { while packets.recv().await.is_some() {} };
        timeout(PATIENCE, ended)
            .await
            .expect("it is disconnected without a word of its own");
        let (_again, mut packets) = house.client("oximeter", "oximeter-pw");
        let first = timeout(PATIENCE, packets.recv()).await.expect("ends");
        assert!(!matches!(first, Some(Packet::ConnAck(ack)) if ack.code == rumqttc::ConnectReturnCode::Success));
        let reading = oximeter.reading(1, 97);
        assert_eq!(
            house.publish("home", OWN, reading.as_bytes()).await,
            PubAckReason::NotAuthorized,
            "nor does somebody else carry its readings in"
        );
        let state = "vitalfog/v1/home-1/oximeter-1/state";
        assert_eq!(
            house.publish("home", state, br#"{"online":true}"#).await,
            PubAckReason::NotAuthorized,
            "nor its state"
        );
        assert_eq!(
            house.quarantined("revoked").await,
            1,
            "the reading; a state is kept nowhere"
        );
        assert!(
            others.try_recv().is_err_and(|e| e == mpsc::error::TryRecvError::Empty),
            "the others stay"
        );
    }

    #[tokio::test]
    async fn a_new_device_comes_in_by_its_code_once() {
        let house = house(2 << 20).await;
        let (home, cuff) = (&house.home, "cuff-9".parse().expect("good"));
        let data_dir = home.folder.path();
        let subject = home.scale.subject.clone();
        let list = data_dir.join("enrolment.json");
        fs::write(&list, "[]").expect("writes");
        let (claim, secret) =
            crate::claim::Claims::make(data_dir, (cuff, Some(subject)), (crate::outbox::now_ms(), 60_000))
                .expect("makes");
        let places = crate::directory::Places {
            enrolments: list,
            folder: data_dir.to_owned(),
            network: home.sealer.network,
        };
        let directory = home.intake.directory().clone();
        let _files = crate::directory::Files::open(directory, places).await.expect("good");
        let user = claim.id.user();
        let (_thief, mut packets) = house.client(&user, "guess");
        let first = timeout(PATIENCE, packets.recv()).await.expect("ends");
        assert!(!matches!(first, Some(Packet::ConnAck(ack)) if ack.code == rumqttc::ConnectReturnCode::Success));
        let (client, mut packets) = house.client(&user, &secret);
        let base = format!("vitalfog/v1/home-1/claim/{}", claim.id);
        client
            .subscribe(format!("{base}/answer"), QoS::AtLeastOnce)
            .await
            .expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::SubAck(_)) {}
        let key = record::signature::SigningKey::random();
        let device: record::ids::DeviceId = "cuff-9".parse().expect("good");
        let presented = crate::claim::tests::presented(&home.sealer.network, &device, &key, "cuff-9-pw");
        let request = format!("{base}/request");
        client
            .publish(request, presented, PublishOptions::at_least_once())
            .await
            .expect("queued");
        let told = loop {
            match timeout(PATIENCE, packets.recv())
                .await
                .expect("told")
                .expect("connected")
            {
                Packet::Publish(told) => break told,
                _ => continue,
            }
        };
        let told = std::str::from_utf8(&told.payload).expect("text").to_owned();
        assert!(told.contains(r#""status":"claimed""#), "{told}");
        // Its own user and key from now on; a reading of it is sealed and acknowledged.
        let measured = crate::outbox::tests::measured("59408-5", record::decimal::Decimal::whole(97), "%");
        let mut reading = home.oximeter.unsigned(1, vec![measured]);
        reading.device = device;
        let topic = "vitalfog/v1/home-1/cuff-9/reading";
        let reading = reading.sign(&key);
        assert_eq!(
            house.publish("cuff-9", topic, reading.as_bytes()).await,
            PubAckReason::Success
        );
        assert_eq!(
            house.publish("cuff-9", OWN, reading.as_bytes()).await,
            PubAckReason::NotAuthorized
        );
        // The claim's user publishes nothing else, and the claim is burnt for another key.
        let report = home.outbox.report().await.expect("runs");
        assert_eq!(report.counters.acknowledged, 1);
        let other = record::signature::SigningKey::random();
        let again = crate::claim::tests::presented(&home.sealer.network, &"cuff-9".parse().expect("good"), &other, "x");
        let refused = home
            .intake
            .directory()
            .burn(&claim.id, again, crate::claim::Evidence::Login)
            .await;
        assert_eq!(refused, Err(crate::claim::Refused::Used));
    }

    #[tokio::test]
    async fn nobody_hears_what_another_device_measures() {
        let house = house(2 << 20).await;
        for (user, filter) in [
            ("scale", "vitalfog/v1/home-1/#"),
            ("home", "vitalfog/v1/home-1/+/reading"),
            ("home", "#"),
        ] {
            let (client, mut packets) = house.client(user, &format!("{user}-pw"));
            client.subscribe(filter, QoS::AtLeastOnce).await.expect("queued");
            let ack = loop {
                if let Packet::SubAck(ack) = timeout(PATIENCE, packets.recv())
                    .await
                    .expect("answered")
                    .expect("connected")
                {
                    break ack;
                }
            };
            assert_eq!(
                ack.return_codes,
                [rumqttc::SubscribeReasonCode::NotAuthorized],
                "{user} {filter}"
            );
        }
    }

    /// An authority, and what it signs: a TLS client with a certificate of this name.
    struct Authority(rcgen::Issuer<'static, rcgen::KeyPair>, String);

    impl Authority {
        fn new() -> Self {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().expect("makes");
            let pem = params.self_signed(&key).expect("signs").pem();
            Self(rcgen::Issuer::new(params, key), pem)
        }

        fn client(&self, name: &str, house: &House) -> Arc<rustls::ClientConfig> {
            let path = |ending: &str| house._folder.path().join(format!("{name}.{ending}"));
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().expect("makes");
            fs::write(path("crt"), params.signed_by(&key, &self.0).expect("signs").pem()).expect("writes");
            secret::tests::write(&path("key"), key.serialize_pem());
            let (broker, own) = (house._folder.path().join("mqtt.crt"), (path("crt"), path("key")));
            Arc::new(tls::client_of_authority(&broker, Some((&own.0, &own.1))).expect("good"))
        }
    }

    impl House {
        /// Whether a client with this TLS is let in under this client id and user.
        async fn lets_in(
            &self,
            tls: &Arc<rustls::ClientConfig>,
            (client_id, user): (&str, &str),
            password: Option<&str>,
        ) -> bool {
            let mut options = MqttOptions::new(client_id, ("localhost", self.broker.listen().port()));
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
            match password {
                Some(password) => options.set_credentials(user, password.to_owned()),
                None => options.set_username(user),
            };
            let (_client, mut events) = AsyncClient::builder(options).build();
            let first = timeout(PATIENCE, events.poll()).await.expect("answered");
            matches!(first, Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == rumqttc::ConnectReturnCode::Success)
        }
    }

    async fn house_of(authority: &Authority, require_certificate: bool) -> House {
        let folder = tempfile::tempdir().expect("temporary folder");
        let ca = folder.path().join("clients.crt");
        fs::write(&ca, &authority.1).expect("writes");
        house_with(|config| {
            config.client_ca = Some(ca);
            config.require_certificate = require_certificate;
        })
        .await
    }

    #[tokio::test]
    async fn a_certificate_logs_in_its_own_name_and_nobody_else() {
        let authority = Authority::new();
        let house = house_of(&authority, false).await;
        let (oximeter, nobody) = (authority.client("oximeter", &house), authority.client("nobody", &house));
        let stranger = Authority::new().client("oximeter", &house);
        assert!(house.lets_in(&oximeter, ("oximeter", "oximeter"), None).await);
        assert!(
            house
                .lets_in(&oximeter, ("oximeter", "oximeter"), Some("oximeter-pw"))
                .await
        );
        assert!(
            !house
                .lets_in(&oximeter, ("oximeter", "oximeter"), Some("guessed"))
                .await
        );
        assert!(
            !house.lets_in(&oximeter, ("oximeter", "scale"), Some("scale-pw")).await,
            "another user"
        );
        assert!(
            !house.lets_in(&oximeter, ("scale", "oximeter"), None).await,
            "another client id"
        );
        assert!(
            !house.lets_in(&nobody, ("nobody", "nobody"), None).await,
            "no such user"
        );
        assert!(
            !house.lets_in(&stranger, ("oximeter", "oximeter"), None).await,
            "another authority"
        );
        assert!(
            house.lets_in(&house.tls, ("any", "scale"), Some("scale-pw")).await,
            "passwords go on to open"
        );
        assert!(
            !house.lets_in(&house.tls, ("oximeter", "oximeter"), None).await,
            "without a certificate"
        );
    }

    #[tokio::test]
    async fn where_certificates_are_required_a_password_alone_does_not_open() {
        let authority = Authority::new();
        let house = house_of(&authority, true).await;
        let oximeter = authority.client("oximeter", &house);
        assert!(house.lets_in(&oximeter, ("oximeter", "oximeter"), None).await);
        assert!(!house.lets_in(&house.tls, ("any", "scale"), Some("scale-pw")).await);
        let incomplete = Config {
            require_certificate: true,
            ..Config::default()
        };
        let faults = incomplete.prepare().expect_err("no authority").join("; ");
        assert!(faults.contains("require_certificate needs client_ca"), "{faults}");
    }

    #[tokio::test]
    async fn a_giant_payload_is_quarantined_as_too_large_and_the_broker_lives() {
        let house = house(2 << 20).await;
        let refused = house.publish("oximeter", OWN, &vec![b'x'; 1 << 20]).await;
        assert_eq!(refused, PubAckReason::PayloadFormatInvalid);
        assert_eq!(house.quarantined("too-large").await, 1);
        let reading = house.home.oximeter.reading(1, 97);
        assert_eq!(
            house.publish("oximeter", OWN, reading.as_bytes()).await,
            PubAckReason::Success,
            "the broker lives"
        );
    }

    #[tokio::test]
    async fn a_packet_above_the_limit_costs_the_connection_and_is_counted() {
        let house = house(100_000).await;
        let mut old = house.old_client("oximeter").await;
        // A PUBLISH header that announces 2 MiB: the broker must not wait for them.
        old.write_all(&[0x32, 0x80, 0x80, 0x80, 0x01, 0, 1])
            .await
            .expect("sends");
        assert_eq!(read(&mut old).await, b"", "disconnected");
        for _ in 0..100 {
            if house.quarantined("too-large").await == 1 {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(house.quarantined("too-large").await, 1);
        let reading = house.home.oximeter.reading(1, 97);
        assert_eq!(
            house.publish("oximeter", OWN, reading.as_bytes()).await,
            PubAckReason::Success,
            "the broker lives"
        );
    }

    #[tokio::test]
    async fn a_session_cannot_be_taken_over_by_another_user() {
        let house = house(2 << 20).await;
        let _first = house.old_client("oximeter").await;
        let mut other = house.silent().await.expect("handshake");
        let body = b"\0\x04MQTT\x04\xc2\0\x3c\0\x0coximeter-old\0\x05scale\0\x08scale-pw";
        other
            .write_all(&[&[0x10, body.len() as u8], &body[..]].concat())
            .await
            .expect("sends");
        assert_eq!(read(&mut other).await, [0x20, 2, 0, 5], "CONNACK: not authorized");
        assert_eq!(house.broker.sessions().count(), 1);
    }

    #[tokio::test]
    async fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let mut key = PathBuf::new();
        let house = house_with(|config| key.clone_from(&config.private_key)).await;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("sets");
        let config = Config {
            certificate: key.with_file_name("mqtt.crt"),
            users: key.with_file_name("users.json"),
            private_key: key,
            ..Config::default()
        };
        assert!(config.prepare().expect_err("readable")[0].contains("0600"));
        drop(house);
    }

    #[tokio::test]
    async fn who_does_not_log_in_is_disconnected_in_time_and_a_device_stays() {
        let house = house_with(|config| config.login_timeout_ms = 500).await;
        let mut device = house.old_client("oximeter").await;
        let mut tcp = TcpStream::connect(house.broker.listen()).await.expect("connects");
        let mut tls = house.silent().await.expect("handshake");
        let mut half = house.silent().await.expect("handshake");
        half.write_all(&[0x10, 60, 0, 4]).await.expect("sends");
        assert_eq!(
            timeout(PATIENCE, tcp.read(&mut [0; 8]))
                .await
                .expect("closed")
                .unwrap_or(0),
            0
        );
        assert_eq!(
            (read(&mut tls).await, read(&mut half).await),
            (vec![], vec![]),
            "closed"
        );
        device.write_all(&[0xc0, 0]).await.expect("sends");
        assert_eq!(read(&mut device).await, [0xd0, 0], "PINGRESP");
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed_and_an_honest_client_still_gets_in() {
        let house = house_with(|config| {
            config.unauthenticated_per_address_max = 3;
            config.login_timeout_ms = 2_000;
        })
        .await;
        let device = house.old_client("oximeter").await;
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(house.silent().await.expect("has a seat"));
        }
        assert!(house.silent().await.is_err(), "no seat is left");
        drop(silent.pop());
        for _ in 0..100 {
            if let Ok(stream) = house.silent().await {
                silent.push(stream);
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(silent.len(), 3, "a seat that was left is free");
        // Whoever keeps a seat loses it: a device that tries again gets in, and one that is logged in has none.
        sleep(Duration::from_millis(2_200)).await;
        let _scale = house.old_client("scale").await;
        drop((device, silent));
    }

    #[tokio::test]
    async fn a_user_has_only_so_many_sessions_and_the_others_keep_theirs() {
        let house = house_with(|config| config.sessions_per_user_max = 2).await;
        let connack = async |client_id: &str, user: &str| {
            let mut stream = house.silent().await.expect("handshake");
            let mut body = b"\0\x04MQTT\x05\xc2\0\x3c\x05\x11\0\0\x0e\x10".to_vec();
            for text in [client_id.to_owned(), user.to_owned(), format!("{user}-pw")] {
                body.extend((text.len() as u16).to_be_bytes());
                body.extend(text.as_bytes());
            }
            let packet = [&[0x10, body.len() as u8], &body[..]].concat();
            stream.write_all(&packet).await.expect("sends");
            read(&mut stream).await[3]
        };
        // Each connection ends at once: its session stays for an hour, and counts.
        assert_eq!((connack("a", "scale").await, connack("b", "scale").await), (0, 0));
        assert_eq!(connack("c", "scale").await, 0x87, "not authorized");
        assert_eq!(connack("a", "scale").await, 0, "its own again");
        assert_eq!(connack("d", "oximeter").await, 0, "another user");
    }

    #[tokio::test]
    async fn what_is_not_taken_is_not_acknowledged() {
        let house = house(2 << 20).await;
        house.home.outbox.stop().await;
        let reading = house.home.oximeter.reading(1, 97);
        let mut old = house.old_client("oximeter").await;
        assert_eq!(
            publish_old(&mut old, OWN, reading.as_bytes()).await,
            b"",
            "disconnected without PUBACK"
        );
        let (client, mut packets) = house.client("oximeter", "oximeter-pw");
        client
            .publish(OWN, reading.as_bytes().to_vec(), PublishOptions::at_least_once())
            .await
            .expect("queued");
        while let Some(packet) = timeout(PATIENCE, packets.recv()).await.expect("ends") {
            assert!(!matches!(packet, Packet::PubAck(_)), "{packet:?}");
        }
    }
}

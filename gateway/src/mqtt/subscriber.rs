//! The client of an outside broker: manual acknowledgements, a session that outlives restarts, and the application's own
//! cumulative acknowledgement, because a PUBACK from such a broker is no receipt.

mod caller;
mod dialer;
mod session;
mod taker;

use std::{num::NonZeroU16, path::PathBuf, sync::Arc, time::Duration};

use record::topic::{self, Channel};
use rumqttc::{
    AckMode, AsyncClient, MqttOptions, QoS, RetainForwardRule, SubscribeFilter, TlsConfiguration, Transport,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::caller::Caller;
use self::{
    dialer::{Dialer, State},
    session::{NothingUnderWay, OUTGOING_MAX},
    taker::Taker,
};
use super::{Error, presence::Presence};
use crate::{intake::Intake, secret, tls};

/// Requests to the client's event loop that wait, at most.
const REQUESTS_MAX: usize = 1_024;
/// First and longest pause before a message is offered to a full spool again, or the broker is dialled again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
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
    /// Client id; the broker keeps the session under it.
    pub client_id: String,
    /// Messages the broker may send before an acknowledgement.
    pub receive_max: NonZeroU16,
    /// Largest packet that is received, in bytes.
    pub packet_bytes_max: u32,
    /// How long the broker keeps the session while the gateway is away, in seconds.
    pub session_expiry_s: u32,
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
            packet_bytes_max: 2 << 20,
            session_expiry_s: 7 * 24 * 3_600,
        }
    }
}

/// What is needed to log in, read from its files.
#[derive(Clone)]
pub struct Access {
    host: String,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
    password: Option<String>,
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
        let address = self
            .address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)));
        if address.is_none() {
            faults.push(format!("mqtt.subscriber.address {:?} must be host:port", self.address));
        }
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
            .map_err(|fault| faults.push(format!("mqtt.subscriber.ca, certificate or private_key: {fault}")));
        let password = self.password_file.as_deref().map(|file| {
            let read = secret::read(file).map_err(|e| format!("mqtt.subscriber.password_file {}: {e}", file.display()));
            read.map_err(|fault| faults.push(fault))
        });
        match (address, tls, password.transpose()) {
            (Some((host, port)), Ok(tls), Ok(password)) if faults.is_empty() => Ok(Access {
                host: host.to_owned(),
                port,
                tls: Arc::new(tls),
                password: password.map(|password| password.trim_end().to_owned()),
            }),
            _ => Err(faults),
        }
    }

    fn options(&self, access: &Access) -> MqttOptions {
        let mut options = MqttOptions::new(&self.client_id, (access.host.as_str(), access.port));
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
        options.set_receive_maximum(Some(self.receive_max.get()));
        options.set_max_packet_size(Some(self.packet_bytes_max));
        options.set_request_channel_capacity(REQUESTS_MAX);
        options
    }
}

/// The link to the outside broker.
#[derive(Clone, Debug)]
pub struct Link(watch::Receiver<State>);

/// The link as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkState {
    /// `down`, `subscribing`, `up` or `refused`.
    pub state: &'static str,
    /// The filters that the broker refuses, or grants without QoS 1: devices are not heard under them.
    pub refused_filters: Vec<String>,
}

impl Link {
    /// Whether it is connected and every subscription was granted.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.borrow().is_up()
    }

    /// What the status shows.
    #[must_use]
    pub fn state(&self) -> LinkState {
        let state = self.0.borrow();
        LinkState {
            state: state.word(),
            refused_filters: state.refused().to_vec(),
        }
    }
}

/// The running client.
#[derive(Debug)]
pub struct Subscriber {
    task: JoinHandle<()>,
    link: watch::Receiver<State>,
    caller: Caller,
}

impl Subscriber {
    pub(super) fn start(config: Config, access: Access, (intake, presence): (Intake, Presence)) -> Result<Self, Error> {
        let options = config.options(&access);
        options.validate()?;
        let (client, events) = AsyncClient::builder(options).build();
        // After a reconnect the broker sends the unacknowledged ones again while the first copies may still wait here.
        let (sender, messages) = mpsc::channel(usize::from(config.receive_max.get()) * 2);
        let (state, link) = watch::channel(State::default());
        let dialer = Dialer {
            client: client.clone(),
            filters: filters(&intake),
            sender,
            state,
        };
        let caller = Caller(client.clone());
        let taker = Taker::of(client, intake, presence, link.clone());
        let limit = usize::from(config.receive_max.get());
        let task = tokio::spawn(async move {
            tokio::join!(dialer.run(events), taker.run(messages, limit));
        });
        Ok(Self { task, link, caller })
    }

    pub(super) fn caller(&self) -> Caller {
        self.caller.clone()
    }

    pub(super) fn link(&self) -> Link {
        Link(self.link.clone())
    }

    pub(super) async fn ended(&mut self) {
        // Whether it returned or was cancelled: it ended.
        let _ended = (&mut self.task).await;
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

fn filters(intake: &Intake) -> Vec<SubscribeFilter> {
    let prefix = topic::prefix(intake.gateway());
    let filter = |channel: Channel| SubscribeFilter::new(format!("{prefix}+/{}", channel.as_str()), QoS::AtLeastOnce);
    let readings = [Channel::Reading, Channel::Wave, Channel::Event].map(|channel| SubscribeFilter {
        // Each connection subscribes again: what somebody has retained comes once.
        retain_forward_rule: RetainForwardRule::OnNewSubscribe,
        ..filter(channel)
    });
    // A state is retained so that it is known after each start.
    readings.into_iter().chain([filter(Channel::State)]).collect()
}

/// Between half and all of a pause, so that many do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::Home;
    use rmqtt::{
        codec::v5::SubscribeAckReason,
        context::ServerContext,
        hook::{Handler, HookResult, Parameter, ReturnType, Type},
        net::Builder,
        server::MqttServer,
        types::SubscribeReturn,
    };
    use rumqttc::{Event, Packet, PublishOptions};
    use std::{fs, net::SocketAddr, path::Path};
    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A broker that knows nothing of us: it takes everybody and acknowledges for itself.
    struct Outside {
        address: SocketAddr,
        folder: TempDir,
        task: JoinHandle<()>,
    }

    /// Refuses one filter, and grants another without QoS 1.
    struct Miser;

    #[async_trait::async_trait]
    impl Handler for Miser {
        async fn hook(&self, question: &Parameter, before: Option<HookResult>) -> ReturnType {
            let Parameter::ClientSubscribeCheckAcl(_, subscribe) = question else {
                return (true, before);
            };
            let answer = match &*subscribe.topic_filter {
                "vitalfog/v1/home-1/+/wave" => SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized),
                "vitalfog/v1/home-1/+/event" => SubscribeReturn::new_success(rmqtt::types::QoS::AtMostOnce, None),
                _ => return (true, before),
            };
            (false, Some(HookResult::SubscribeAclResult(answer)))
        }
    }

    async fn outside() -> Outside {
        outside_that(None).await
    }

    async fn outside_that(refuses: Option<Miser>) -> Outside {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |name: &str| folder.path().join(name);
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("makes");
        fs::write(path("ca.crt"), own.cert.pem()).expect("writes");
        fs::write(path("ca.key"), own.signing_key.serialize_pem()).expect("writes");
        secret::tests::write(&path("password"), "secret\n");
        let listener = Builder::new()
            .name("outside")
            .laddr(SocketAddr::from(([127, 0, 0, 1], 0)))
            .allow_anonymous(true)
            .max_session_expiry_interval(Duration::from_secs(600))
            .tls_cert(path("ca.crt").to_str())
            .tls_key(path("ca.key").to_str())
            .bind()
            .and_then(rmqtt::net::Listener::tls)
            .expect("binds");
        let address = listener.local_addr().expect("bound");
        let context = ServerContext::new().busy_check_enable(false).build().await;
        if let Some(miser) = refuses {
            let register = context.extends.hook_mgr().register();
            register.add(Type::ClientSubscribeCheckAcl, Box::new(miser)).await;
            register.start().await;
        }
        let server = MqttServer::new(context).listener_by_id(listener, 1).build();
        let task = tokio::spawn(async move {
            let _ended = server.run().await;
        });
        Outside { address, folder, task }
    }

    impl Outside {
        fn config(&self) -> Config {
            Config {
                address: format!("localhost:{}", self.address.port()),
                ca: self.folder.path().join("ca.crt"),
                password_file: Some(self.folder.path().join("password")),
                ..Config::default()
            }
        }

        fn subscriber(&self, intake: &Intake) -> Subscriber {
            let config = self.config();
            let access = config.prepare().expect("good");
            let presence = Presence::of(intake.clone(), Duration::from_secs(1));
            Subscriber::start(config, access, (intake.clone(), presence)).expect("starts")
        }

        /// A device that hears what the gateway says to it.
        fn device(&self) -> (AsyncClient, mpsc::Receiver<Packet>) {
            let mut options = MqttOptions::new("oximeter-1", ("localhost", self.address.port()));
            let tls = tls::client_of_authority(Path::new(&self.config().ca), None).expect("good");
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
            let (client, mut events) = AsyncClient::builder(options).build();
            let (sender, packets) = mpsc::channel(100);
            tokio::spawn(async move {
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
    }

    async fn until<T>(mut found: impl AsyncFnMut() -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, search).await.expect("in time")
    }

    async fn is_up(subscriber: &Subscriber) {
        until(async || subscriber.link().is_up().then_some(())).await;
    }

    async fn acknowledged(home: &Home) -> u64 {
        home.outbox.report().await.expect("runs").counters.acknowledged
    }

    async fn heard(packets: &mut mpsc::Receiver<Packet>) -> (String, String) {
        loop {
            let packet = timeout(PATIENCE, packets.recv())
                .await
                .expect("in time")
                .expect("connected");
            if let Packet::Publish(message) = packet {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&message.topic), text(&message.payload));
            }
        }
    }

    #[tokio::test]
    async fn what_is_durable_is_acknowledged_to_the_device_and_never_sent_again() {
        let (home, outside) = (Home::open(), outside().await);
        let subscriber = outside.subscriber(&home.intake);
        is_up(&subscriber).await;
        let (device, mut packets) = outside.device();
        device
            .subscribe("vitalfog/v1/home-1/oximeter-1/#", QoS::AtLeastOnce)
            .await
            .expect("queued");
        let topic = "vitalfog/v1/home-1/oximeter-1/reading";
        for message in [home.oximeter.reading(1, 97), home.oximeter.reading(2, 970)] {
            let options = PublishOptions::at_least_once();
            device
                .publish(topic, message.as_bytes().to_vec(), options)
                .await
                .expect("queued");
        }
        let (mut seen_ack, mut seen_error) = (false, false);
        while !(seen_ack && seen_error) {
            let (topic, text) = heard(&mut packets).await;
            seen_ack |= topic.ends_with("/ack") && text.contains("\"upto_seq\":2") && text.contains("\"boot\":\"1-");
            seen_error |= topic.ends_with("/error") && text.contains("implausible");
        }
        assert_eq!(acknowledged(&home).await, 1);
        subscriber.stop();
        let again = outside.subscriber(&home.intake);
        is_up(&again).await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.received, report.counters.duplicates), (2, 0));
    }

    #[tokio::test]
    async fn what_was_not_durable_is_sent_again_to_the_next_start() {
        let (mut home, outside) = (Home::open(), outside().await);
        let subscriber = outside.subscriber(&home.intake);
        is_up(&subscriber).await;
        home.outbox.stop().await;
        let (device, mut packets) = outside.device();
        let (topic, message) = ("vitalfog/v1/home-1/oximeter-1/reading", home.oximeter.reading(1, 97));
        let options = PublishOptions::at_least_once();
        device
            .publish(topic, message.as_bytes().to_vec(), options)
            .await
            .expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::PubAck(_)) {}
        sleep(Duration::from_millis(300)).await;
        subscriber.stop();
        home.reopen().await;
        device
            .subscribe("vitalfog/v1/home-1/oximeter-1/ack", QoS::AtLeastOnce)
            .await
            .expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::SubAck(_)) {}
        let _again = outside.subscriber(&home.intake);
        until(async || (acknowledged(&home).await == 1).then_some(())).await;
        let (_, text) = heard(&mut packets).await;
        assert!(
            text.contains("\"upto_seq\":1"),
            "also in a session that only the broker remembers: {text}"
        );
        outside.task.abort();
    }

    #[tokio::test]
    async fn a_session_that_never_subscribed_is_subscribed_by_the_next_start() {
        let (home, outside) = (Home::open(), outside().await);
        let config = outside.config();
        let access = config.prepare().expect("good");
        // Killed between CONNACK and SUBSCRIBE: the broker keeps a session that hears nothing.
        let (_client, mut events) = AsyncClient::builder(config.options(&access)).build();
        while !matches!(
            events.poll().await.expect("connects"),
            Event::Incoming(Packet::ConnAck(_))
        ) {}
        drop(events);
        let subscriber = outside.subscriber(&home.intake);
        is_up(&subscriber).await;
        let (device, _packets) = outside.device();
        let reading = home.oximeter.reading(1, 97).as_bytes().to_vec();
        device
            .publish(
                "vitalfog/v1/home-1/oximeter-1/reading",
                reading,
                PublishOptions::at_least_once(),
            )
            .await
            .expect("queued");
        until(async || (acknowledged(&home).await == 1).then_some(())).await;
    }

    #[tokio::test]
    async fn a_password_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let outside = outside().await;
        let config = outside.config();
        let file = config.password_file.as_ref().expect("set");
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("sets");
        assert!(config.prepare().expect_err("readable")[0].contains("0600"));
    }

    #[tokio::test]
    async fn a_login_is_complete_or_refused_before_anything_starts() {
        let outside = outside().await;
        let (certificate, key) = (
            outside.folder.path().join("ca.crt"),
            outside.folder.path().join("client.key"),
        );
        secret::tests::write(
            &key,
            fs::read_to_string(outside.folder.path().join("ca.key")).expect("reads"),
        );
        let faults = |change: &dyn Fn(&mut Config)| {
            let mut config = outside.config();
            change(&mut config);
            config.prepare().err().unwrap_or_default().join("; ")
        };
        assert_eq!(faults(&|_| {}), "");
        assert_eq!(
            faults(&|c| (c.certificate, c.private_key) = (Some(certificate.clone()), Some(key.clone()))),
            ""
        );
        assert!(faults(&|c| c.certificate = Some(certificate.clone())).contains("belong together"));
        assert!(faults(&|c| c.private_key = Some(key.clone())).contains("belong together"));
        assert!(faults(&|c| c.password_file = None).contains("nothing to log in with"));
        assert!(faults(&|c| c.user.clear()).contains("needs user"));
        let by_certificate = |c: &mut Config| {
            (c.certificate, c.private_key, c.password_file) = (Some(certificate.clone()), Some(key.clone()), None);
        };
        assert_eq!(faults(&by_certificate), "");
    }

    #[tokio::test]
    async fn a_refused_filter_is_shown_and_is_not_up() {
        let (home, outside) = (Home::open(), outside_that(Some(Miser)).await);
        let subscriber = outside.subscriber(&home.intake);
        let shown = until(async || Some(subscriber.link().state()).filter(|shown| shown.state == "refused")).await;
        let refused = ["vitalfog/v1/home-1/+/wave", "vitalfog/v1/home-1/+/event"];
        assert_eq!(shown.refused_filters, refused);
        assert!(!subscriber.link().is_up());
    }
}

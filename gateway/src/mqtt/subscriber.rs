//! The client of an outside broker: a session for each urgency, manual acknowledgements, sessions that outlive restarts, and the
//! application's own cumulative acknowledgement, because a PUBACK from such a broker is no receipt.

mod claimant;
mod config;
mod dialer;
mod lane;
mod session;
mod taker;
mod voice;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rumqttc::{AsyncClient, EventLoop, Publish};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use self::{
    claimant::Claimants,
    dialer::{Dialer, State},
    lane::Lane,
    taker::{Sink, Taker},
};
pub use self::{claimant::Config as ClaimsConfig, config::Config, voice::Voice};
use super::{Error, presence::Presence, rate::Rates};
use crate::{intake::Intake, login::Access};

/// First and longest pause before a message is offered to a full spool again, or the broker is dialled again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The link to the outside broker: all sessions there.
#[derive(Clone, Debug)]
pub struct Link(Vec<(Lane, watch::Receiver<State>)>);

/// The link as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkState {
    /// Of all sessions together: `refused` if one is, else `down`, `subscribing`, or `up` if all are.
    pub state: &'static str,
    /// The same of each: `alarms`, `readings`, `waves`, and `claims` if there are codes.
    pub sessions: BTreeMap<&'static str, &'static str>,
    /// The filters that the broker refuses, or grants without QoS 1: devices are not heard under them.
    pub refused_filters: Vec<String>,
}

impl Link {
    /// Whether all are connected and every subscription was granted.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.iter().all(|(_, state)| state.borrow().is_up())
    }

    /// What the status shows.
    #[must_use]
    pub fn state(&self) -> LinkState {
        let (mut sessions, mut refused_filters) = (BTreeMap::new(), Vec::new());
        for (lane, state) in &self.0 {
            let state = state.borrow();
            sessions.insert(lane.as_str(), state.word());
            refused_filters.extend_from_slice(state.refused());
        }
        let worst = ["refused", "down", "subscribing"];
        let state = worst
            .into_iter()
            .find(|word| sessions.values().any(|state| state == word));
        LinkState {
            state: state.unwrap_or("up"),
            sessions,
            refused_filters,
        }
    }
}

/// The running client.
#[derive(Debug)]
pub struct Subscriber {
    task: JoinHandle<()>,
    link: Link,
    voice: Voice,
}

/// One session before it runs.
struct Session {
    lane: Lane,
    client: AsyncClient,
    events: EventLoop,
    state: watch::Sender<State>,
    receive_max: u16,
}

impl Session {
    fn of(lane: Lane, config: &Config, access: &Access) -> Result<Self, Error> {
        let options = config.options(access, lane);
        options.validate()?;
        let (client, events) = AsyncClient::builder(options).build();
        Ok(Self {
            lane,
            client,
            events,
            state: watch::Sender::default(),
            receive_max: lane.receive_max(config),
        })
    }

    fn link(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Keeps the connection from now on; what comes over it.
    fn dial(self, intake: &Intake, tasks: &mut JoinSet<()>) -> mpsc::Receiver<(u64, Publish)> {
        // After a reconnect the broker sends the unacknowledged ones again while the first copies may still wait here.
        let (sender, messages) = mpsc::channel(usize::from(self.receive_max) * 2);
        let dialer = Dialer {
            lane: self.lane,
            client: self.client,
            filters: self.lane.filters(intake.gateway()),
            sender,
            state: self.state,
        };
        tasks.spawn(dialer.run(self.events));
        messages
    }
}

impl Subscriber {
    pub(super) fn start(config: Config, access: Access, (intake, presence): (Intake, Presence)) -> Result<Self, Error> {
        let measured = Lane::MEASURED.map(|lane| Session::of(lane, &config, &access));
        let measured = measured.into_iter().collect::<Result<Vec<_>, _>>()?;
        let claims = config
            .claims
            .as_ref()
            .map(|_| Session::of(Lane::Claims, &config, &access));
        let claims = claims.transpose()?;
        let all = measured.iter().chain(&claims);
        let link = Link(all.map(|session| (session.lane, session.link())).collect());
        let speakers = measured.iter().map(|session| (session.client.clone(), session.link()));
        let (voice, speaker) = Voice::of(intake.gateway().clone(), speakers.collect());
        let asking = voice.clone();
        let links = measured.iter().map(Session::link).collect();
        let rates = Rates::of(
            config.device_messages_per_s_max.get(),
            config.device_burst_messages_max.get(),
        );
        let rates = rates.with_backlog(config.device_backlog_messages_max);
        let mut tasks = JoinSet::new();
        tasks.spawn(speaker.run());
        tasks.spawn(leave_former(&intake, &measured));
        if let Some(session) = claims {
            let desk = Claimants::of(intake.clone(), voice.clone());
            let (client, link) = (session.client.clone(), session.link());
            let messages = session.dial(&intake, &mut tasks);
            tasks.spawn(desk.run((client, link), messages));
        }
        let sink = Arc::new(Sink {
            intake: intake.clone(),
            presence,
            rates,
            links,
            voice,
        });
        for session in measured {
            let (client, link, limit) = (session.client.clone(), session.link(), usize::from(session.receive_max));
            let sink = Arc::clone(&sink);
            let messages = session.dial(&intake, &mut tasks);
            tasks.spawn(Taker { client, link, sink }.run(messages, limit));
        }
        let task = tokio::spawn(async move {
            // They serve until the task is dropped; the caller treats any end as a failure.
            let _ended = tasks.join_next().await;
        });
        Ok(Self {
            task,
            link,
            voice: asking,
        })
    }

    pub(super) fn voice(&self) -> Voice {
        self.voice.clone()
    }

    pub(super) fn link(&self) -> Link {
        self.link.clone()
    }

    pub(super) async fn ended(&mut self) {
        // Whether it returned or was cancelled: it ended.
        let _ended = (&mut self.task).await;
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

/// Takes the session of former versions, which heard everything, out of what other sessions hear now, as soon as they do, and
/// then rests. What it has of that is taken through it.
fn leave_former(intake: &Intake, sessions: &[Session]) -> impl Future<Output = ()> + use<> {
    let filters = Lane::former_filters(intake.gateway());
    let own = sessions.iter().find(|session| session.lane == Lane::Readings);
    let own = own.map(|session| session.client.clone());
    let mut all: Vec<_> = sessions.iter().map(Session::link).collect();
    async move {
        let Some(client) = own else { return };
        loop {
            for link in &mut all {
                if link.wait_for(State::is_up).await.is_err() {
                    return;
                }
            }
            let Ok(answer) = client.unsubscribe_many_tracked(filters.clone()).await else {
                return;
            };
            if answer.wait_async().await.is_ok() {
                std::future::pending::<()>().await;
            }
            // The connection was lost before the broker answered.
            sleep(PAUSE.0).await;
        }
    }
}

/// Between half and all of a pause, so that many do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{outbox::tests::Home, secret, tls};
    use record::ids::DeviceId;
    use rmqtt::{
        codec::v5::SubscribeAckReason,
        context::ServerContext,
        hook::{Handler, HookResult, Parameter, ReturnType, Type},
        net::Builder,
        server::MqttServer,
        types::SubscribeReturn,
    };
    use rumqttc::{Event, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration, Transport};
    use std::{fs, net::SocketAddr, num::NonZeroU16, path::Path};
    use tempfile::TempDir;
    use tokio::time::timeout;

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
            self.subscriber_with(intake, self.config())
        }

        fn subscriber_with(&self, intake: &Intake, config: Config) -> Subscriber {
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
        let (_client, mut events) = AsyncClient::builder(config.options(&access, Lane::Readings)).build();
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
        let refused = ["vitalfog/v1/home-1/+/event", "vitalfog/v1/home-1/+/wave"];
        assert_eq!(shown.refused_filters, refused);
        assert!(!subscriber.link().is_up());
    }

    /// Publishes something of a device, and waits until the broker has it.
    async fn publish((client, packets): (&AsyncClient, &mut mpsc::Receiver<Packet>), topic: &str, message: Vec<u8>) {
        let options = PublishOptions::at_least_once();
        client.publish(topic, message, options).await.expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::PubAck(_)) {}
    }

    fn topic(device: &str, channel: &str) -> String {
        format!("vitalfog/v1/home-1/{device}/{channel}")
    }

    #[tokio::test]
    async fn an_alarm_passes_full_windows_of_readings_and_of_waveforms() {
        let home = Home::with(crate::outbox::Config {
            bytes_max: 4_000,
            alarms_percent: 200,
            ..crate::outbox::Config::default()
        });
        let mut full = 1;
        while home.outbox.append(home.scale.measurement(full, 97)).await.is_ok() {
            full += 1;
        }
        let outside = outside().await;
        let two = NonZeroU16::new(2).expect("not zero");
        let config = Config {
            receive_max: two,
            waves_receive_max: two,
            ..outside.config()
        };
        let subscriber = outside.subscriber_with(&home.intake, config);
        is_up(&subscriber).await;
        let (device, mut packets) = outside.device();
        for seq in 1..=20 {
            let channel = if seq % 2 == 0 { "reading" } else { "wave" };
            let message = home.oximeter.reading(seq, 97).as_bytes().to_vec();
            publish((&device, &mut packets), &topic("oximeter-1", channel), message).await;
        }
        let before = acknowledged(&home).await;
        let alarm = home.oximeter.reading(21, 97).as_bytes().to_vec();
        publish((&device, &mut packets), &topic("oximeter-1", "event"), alarm).await;
        until(async || (acknowledged(&home).await == before + 1).then_some(())).await;
        assert_eq!(home.outbox.alarms(0, 9).expect("reads").len(), 1);
        // When there is room again, all that waited comes by itself.
        let drained = async || {
            for ticket in home.outbox.tickets(0, 100).expect("reads") {
                let done = crate::outbox::Final {
                    order: ticket.order,
                    receipt: home.receipt(ticket.order),
                    verified_ms: crate::outbox::now_ms(),
                    was_new: true,
                };
                home.outbox.forget(vec![done]).await;
            }
            (acknowledged(&home).await == before + 21).then_some(())
        };
        until(drained).await;
    }

    #[tokio::test]
    async fn the_one_session_of_a_former_version_gives_up_what_others_hear_and_what_it_has_is_taken() {
        let (home, outside) = (Home::open(), outside().await);
        let config = outside.config();
        let access = config.prepare().expect("good");
        let (client, mut events) = AsyncClient::builder(config.options(&access, Lane::Readings)).build();
        let gateway = home.intake.gateway().clone();
        let all = Lane::MEASURED.into_iter().flat_map(|lane| lane.filters(&gateway));
        client.subscribe_many(all.collect::<Vec<_>>()).await.expect("queued");
        while !matches!(
            events.poll().await.expect("connects"),
            Event::Incoming(Packet::SubAck(_))
        ) {}
        drop(events);
        let (device, mut packets) = outside.device();
        let alarm = |seq| home.oximeter.reading(seq, 97).as_bytes().to_vec();
        publish((&device, &mut packets), &topic("oximeter-1", "event"), alarm(1)).await;
        let subscriber = outside.subscriber(&home.intake);
        is_up(&subscriber).await;
        until(async || (acknowledged(&home).await == 1).then_some(())).await;
        // From some moment on an alarm comes through one session alone: what comes after it through the other shows that.
        let mut seq = 1;
        let once = async || {
            let before = home.outbox.report().await.expect("runs").counters;
            publish((&device, &mut packets), &topic("oximeter-1", "event"), alarm(seq + 1)).await;
            publish((&device, &mut packets), &topic("oximeter-1", "reading"), alarm(seq + 2)).await;
            seq += 2;
            until(async || (acknowledged(&home).await == before.acknowledged + 2).then_some(())).await;
            let after = home.outbox.report().await.expect("runs").counters;
            (after.duplicates == before.duplicates).then_some(())
        };
        until(once).await;
    }

    #[tokio::test]
    async fn a_device_that_is_too_fast_gets_its_rate_its_alarms_pass_and_what_was_too_much_comes_again() {
        let (home, outside) = (Home::open(), outside().await);
        let few = |number| std::num::NonZeroU32::new(number).expect("not zero");
        let config = Config {
            device_messages_per_s_max: few(1),
            device_burst_messages_max: few(5),
            device_backlog_messages_max: 0,
            ..outside.config()
        };
        let subscriber = outside.subscriber_with(&home.intake, config);
        is_up(&subscriber).await;
        let (device, mut packets) = outside.device();
        for seq in 1..=200 {
            let message = home.oximeter.reading(seq, 97).as_bytes().to_vec();
            publish((&device, &mut packets), &topic("oximeter-1", "wave"), message).await;
        }
        let alarm = home.oximeter.reading(201, 97).as_bytes().to_vec();
        publish((&device, &mut packets), &topic("oximeter-1", "event"), alarm).await;
        let scale = home.scale.reading(1, 97).as_bytes().to_vec();
        publish((&device, &mut packets), &topic("scale-1", "reading"), scale).await;
        until(async || (!home.outbox.alarms(0, 9).expect("reads").is_empty()).then_some(())).await;
        until(async || home.outbox.gaps().await.first().map(|_| ())).await;
        let taken = acknowledged(&home).await;
        assert!((5..100).contains(&taken), "the burst, and one a second: {taken}");
        // Nothing of it was acknowledged to the device, which sends it again when its rate allows.
        let again = home.oximeter.reading(200, 97).as_bytes().to_vec();
        let comes = async || {
            publish((&device, &mut packets), &topic("oximeter-1", "reading"), again.clone()).await;
            let gaps = home.outbox.gaps().await;
            let is_missing = gaps.iter().any(|gap| gap.missing.iter().any(|(_, to)| *to == 200));
            (!is_missing).then_some(())
        };
        until(comes).await;
    }

    #[tokio::test]
    async fn a_code_is_used_through_an_outside_broker_and_guessing_spoils_it() {
        let (home, outside) = (Home::open(), outside().await);
        let data_dir = home.folder.path();
        let device: DeviceId = "cuff-9".parse().expect("good");
        let make = || {
            let whom = (device.clone(), Some(home.scale.subject.clone()));
            crate::claim::Claims::make(data_dir, whom, (crate::outbox::now_ms(), 60_000)).expect("makes")
        };
        let ((claim, secret), (guessed, guessed_secret)) = (make(), make());
        let list = data_dir.join("enrolment.json");
        fs::write(&list, "[]").expect("writes");
        let places = crate::directory::Places {
            enrolments: list,
            folder: data_dir.to_owned(),
            network: home.sealer.network,
        };
        let directory = home.intake.directory().clone();
        let _files = crate::directory::Files::open(directory, places).await.expect("good");
        let config = Config {
            claims: Some(ClaimsConfig {
                url: "mqtts://broker.example:8885".to_owned(),
                user: None,
                password_file: None,
            }),
            ..outside.config()
        };
        let subscriber = outside.subscriber_with(&home.intake, config);
        is_up(&subscriber).await;
        assert_eq!(subscriber.link().state().sessions.len(), 4);
        let (client, mut packets) = outside.device();
        let answers = "vitalfog/v1/home-1/claim/+/answer";
        client.subscribe(answers, QoS::AtLeastOnce).await.expect("queued");
        while !matches!(packets.recv().await.expect("connected"), Packet::SubAck(_)) {}
        let key = record::signature::SigningKey::random();
        let request = |claim: &crate::claim::Claim, secret: &str| {
            let place = (&home.sealer.network, home.intake.gateway());
            crate::claim::tests::proven(place, claim, (&key, secret))
        };
        let mut ask = async |claim: &crate::claim::Claim, request: String| {
            let topic = crate::claim::request_topic(home.intake.gateway(), &claim.id);
            let options = PublishOptions::at_least_once();
            client.publish(topic, request, options).await.expect("queued");
            heard(&mut packets).await.1
        };
        for _ in 0..10 {
            assert!(
                ask(&guessed, request(&guessed, "guess"))
                    .await
                    .contains("claim-unknown")
            );
        }
        let spoilt = ask(&guessed, request(&guessed, &guessed_secret)).await;
        assert!(spoilt.contains("claim-unknown"), "{spoilt}");
        let claimed = ask(&claim, request(&claim, &secret)).await;
        assert!(claimed.contains(r#""status":"claimed""#), "{claimed}");
        // Its key counts from now on.
        let measured = crate::outbox::tests::measured("59408-5", record::decimal::Decimal::whole(97), "%");
        let mut reading = home.oximeter.unsigned(1, vec![measured]);
        reading.device = device;
        let message = reading.sign(&key).as_bytes().to_vec();
        let options = PublishOptions::at_least_once();
        client
            .publish(topic("cuff-9", "reading"), message, options)
            .await
            .expect("queued");
        until(async || (acknowledged(&home).await == 1).then_some(())).await;
    }
}

//! Bundles on their way to the fog: submitted to any node, and forgotten only for a receipt that was verified here.
//!
//! One flight per bundle: submit, then wait for the receipt at the same node; whatever goes wrong, the next node. Up to
//! `in_flight_max` are under way at a time; all of it starts again from the outbox after a restart.
//!
//! Which bundle flies next is for its lane to say: alarms first, then what is new, then the backlog; each lane in the order
//! of the queue, and each with a share that the others cannot take (`uplink/lanes.rs`, `uplink/traffic.rs`).
//!
//! A bundle that no node is ready for (its subject's key is not announced, say) is laid by and tried again after a pause that
//! grows with each try. Those tries have a share of the flights only: one patient who is not ready never stops the others.

mod flight;
mod lanes;
mod node;
mod pace;
mod traffic;
mod voters;

use std::{
    collections::{BTreeSet, HashSet},
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ledger::{genesis::Genesis, handover::Committees};
use record::canonical::Digest;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};

use self::{flight::Flight, lanes::Lanes, node::Nodes, traffic::Traffic};
use crate::{outbox::Outbox, tls};

pub(crate) use self::node::{body, client, growing};
pub use self::{node::NodeState, voters::Voters};

/// The fog nodes and how patient the gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Base addresses, `https://host:port`.
    pub nodes: Vec<String>,
    /// The gateway's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The authority that signed the nodes' certificates, PEM.
    pub ca: PathBuf,
    /// Bundles under way at a time.
    pub in_flight_max: usize,
    /// A node that does not connect within this time is passed over, in milliseconds.
    pub connect_timeout_ms: u64,
    /// TLS keys (`1220..`) of nodes that joined after the founders, of whom the genesis names the keys.
    pub pins: Vec<Digest>,
    /// A submission must be answered within this time, in milliseconds.
    pub submit_timeout_ms: u64,
    /// How long one question for a receipt may wait at the node, in milliseconds; at most 30,000.
    pub receipt_wait_ms: u64,
    /// An admitted bundle that is not final after this time is submitted to the next node as well, in milliseconds.
    pub final_timeout_ms: u64,
    /// First pause after a failure, in milliseconds; it doubles with each, with jitter.
    pub pause_min_ms: u64,
    /// Longest pause after failures, in milliseconds.
    pub pause_max_ms: u64,
    /// A bundle that has waited for longer than this is backlog, and goes after what is new, in milliseconds.
    pub backlog_after_ms: u64,
    /// Bundles of the backlog that are started in one second, at most: when many gateways come back together, their stored
    /// readings must not take the fog from what is measured now. Four small nodes take some 150 a second of all gateways.
    pub backlog_bundles_per_s_max: NonZeroU32,
    /// A bundle that no node is ready for is tried again after a pause that grows from `pause_min_ms` up to this, in
    /// milliseconds.
    pub lay_by_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: (8401..=8404).map(|port| format!("https://127.0.0.1:{port}")).collect(),
            certificate: "gateway.crt".into(),
            private_key: "gateway.key".into(),
            ca: "ca.crt".into(),
            pins: Vec::new(),
            in_flight_max: 64,
            connect_timeout_ms: 2_000,
            submit_timeout_ms: 10_000,
            receipt_wait_ms: 10_000,
            final_timeout_ms: 20_000,
            pause_min_ms: 100,
            pause_max_ms: 5_000,
            backlog_after_ms: 5_000,
            backlog_bundles_per_s_max: const { NonZeroU32::new(100).expect("not zero") },
            lay_by_ms: 60_000,
        }
    }
}

/// The network as the gateway knows it: who votes, and a client that talks to its nodes only.
#[derive(Clone, Debug)]
pub struct Network {
    committees: Committees,
    client: rustls::ClientConfig,
}

impl Config {
    /// The nodes' addresses, each once, in their order: a node that is named twice is one witness.
    #[must_use]
    pub fn bases(&self) -> Vec<reqwest::Url> {
        let mut named = HashSet::new();
        let all = self.nodes.iter().filter_map(|url| node::base(url));
        all.filter(|base| named.insert(base.clone())).collect()
    }

    /// Reads the TLS files and ties them to the network; each fault is one sentence.
    ///
    /// # Errors
    /// All faults.
    pub fn prepare(&self, genesis: &Genesis) -> Result<Network, Vec<String>> {
        let mut faults = Vec::new();
        if self.nodes.is_empty() {
            faults.push("uplink.nodes must name at least one fog node".to_owned());
        }
        let bad = self.nodes.iter().filter(|url| node::base(url).is_none());
        faults.extend(bad.map(|url| format!("uplink.nodes {url:?} must be https://host:port")));
        let mut named = HashSet::new();
        let bases = self.nodes.iter().filter_map(|url| node::base(url));
        let again: BTreeSet<_> = bases.filter(|base| !named.insert(base.clone())).collect();
        faults.extend(
            again
                .iter()
                .map(|url| format!("uplink.nodes names {url} more than once; name each node once")),
        );
        if self.in_flight_max == 0 || self.receipt_wait_ms > 30_000 || self.pause_min_ms > self.pause_max_ms {
            let rule = "in_flight_max at least 1, receipt_wait_ms at most 30000, pause_min_ms at most pause_max_ms";
            faults.push(format!("uplink: {rule}"));
        }
        let founders = genesis.validators.iter().map(|v| v.tls);
        let pinned: HashSet<_> = founders.chain(self.pins.iter().copied()).collect();
        let client = tls::client_of_nodes(&self.ca, (&self.certificate, &self.private_key), pinned);
        let client = client.map_err(|fault| faults.push(format!("uplink {fault}")));
        match client {
            Ok(client) if faults.is_empty() => {
                let committees = Committees::founding(genesis);
                Ok(Network { committees, client })
            }
            _ => Err(faults),
        }
    }
}

impl Network {
    /// A client's TLS that talks to the network's nodes only.
    #[must_use]
    pub const fn tls(&self) -> &rustls::ClientConfig {
        &self.client
    }
}

/// Why the uplink cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    /// The spool cannot be read.
    #[error("the spool cannot be read: {0}")]
    Spool(#[from] redb::Error),
    /// A flight did not end as it should.
    #[error("a task of the uplink failed: {0}")]
    Task(#[from] JoinError),
}

/// What the status shows of the uplink.
#[derive(Clone, Debug)]
pub struct View {
    in_flight: watch::Receiver<usize>,
    nodes: Arc<Nodes>,
}

impl View {
    /// Bundles under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// The nodes and how they are.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeState> {
        self.nodes.states()
    }
}

/// The running uplink.
#[derive(Debug)]
pub struct Uplink {
    task: JoinHandle<Result<(), Error>>,
    view: View,
    voters: Voters,
}

impl Uplink {
    /// Starts submitting what the outbox holds.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub fn start(config: &Config, network: Network, outbox: Outbox) -> Result<Self, Error> {
        let nodes = Arc::new(Nodes::connect(config, network.client)?);
        let (announce, in_flight) = watch::channel(0);
        let view = View {
            in_flight,
            nodes: Arc::clone(&nodes),
        };
        let lanes = Lanes::of(
            outbox.clone(),
            Duration::from_millis(config.backlog_after_ms),
            config.backlog_bundles_per_s_max,
        );
        let voters = Voters::new(network.committees);
        let flight = Flight {
            nodes,
            outbox,
            voters: voters.clone(),
        };
        let lay_by = (
            Duration::from_millis(config.pause_min_ms),
            Duration::from_millis(config.lay_by_ms),
        );
        let traffic = Traffic::new(flight, lanes, config.in_flight_max, lay_by);
        let task = tokio::spawn(traffic.run(announce));
        Ok(Self { task, view, voters })
    }

    /// What the status shows.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Who votes, as far as it is known.
    #[must_use]
    pub fn voters(&self) -> Voters {
        self.voters.clone()
    }

    /// Resolves when the uplink has ended by itself, which it must not, with the reason.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ended(&mut self) -> Result<(), Error> {
        (&mut self.task).await?
    }

    /// Stops at once: what is under way is still in the outbox, and is submitted again after the next start.
    pub fn stop(&self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        follow,
        outbox::{
            Measurement, Urgency,
            tests::{Home, receipt_text},
        },
        secret,
    };
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use ledger::{
        admission::{Admission, Submission},
        handover::Handovers,
    };
    use rcgen::PublicKeyData as _;
    use record::{
        canonical::Domain,
        ids::{KeyId, NetworkId},
        signature::{PublicKey, SigningKey},
    };
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use std::{convert::Infallible, net::SocketAddr, path::Path};
    use tempfile::TempDir;
    use tokio::{net::TcpListener, time::sleep};
    use tokio_rustls::TlsAcceptor;

    /// How a fog node behaves; the wire below the code under test is real TLS and HTTP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Manner {
        Honest,
        Busy,
        Refuses,
        NotYet,
        /// Is ready for bundles of the subject that has this key alone.
        ReadyFor(KeyId),
        ForgesAdmissions,
        ForgesReceipts,
        Forgets,
    }

    /// Four validators' keys and a certificate that every node shows.
    struct Fog {
        validators: Vec<SigningKey>,
        network: NetworkId,
        certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
        folder: TempDir,
    }

    struct FakeNode {
        address: SocketAddr,
        manner: watch::Sender<Manner>,
        asked: watch::Receiver<usize>,
        /// Ids of the bundles it has admitted, in their order, with what was submitted.
        held: watch::Receiver<Vec<(String, Submission)>>,
    }

    impl FakeNode {
        fn admitted(&self) -> Vec<String> {
            self.held.borrow().iter().map(|(id, _)| id.clone()).collect()
        }
    }

    impl Fog {
        fn of(home: &Home) -> Self {
            let folder = tempfile::tempdir().expect("temporary folder");
            let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("makes");
            let own = rcgen::generate_simple_self_signed(["gateway".to_owned()]).expect("makes");
            let write = |name: &str, pem: String| std::fs::write(folder.path().join(name), pem).expect("writes");
            write("ca.crt", certificate.cert.pem());
            write("gateway.crt", own.cert.pem());
            secret::tests::write(&folder.path().join("gateway.key"), own.signing_key.serialize_pem());
            let validators = (0..4).map(|_| SigningKey::random()).collect();
            Self {
                validators,
                network: home.sealer.network,
                certificate,
                folder,
            }
        }

        fn config(&self, nodes: &[&FakeNode]) -> Config {
            let path = |name: &str| self.folder.path().join(name);
            Config {
                nodes: nodes.iter().map(|node| format!("https://{}", node.address)).collect(),
                certificate: path("gateway.crt"),
                private_key: path("gateway.key"),
                ca: path("ca.crt"),
                receipt_wait_ms: 50,
                final_timeout_ms: 300,
                pause_min_ms: 10,
                pause_max_ms: 50,
                lay_by_ms: 200,
                ..Config::default()
            }
        }

        fn network(&self, config: &Config, pin: bool) -> Network {
            let mut keys: Vec<PublicKey> = self.validators.iter().map(SigningKey::public).collect();
            keys.sort();
            let founders = Handovers {
                network: self.network,
                validators: keys,
                handovers: Vec::new(),
            };
            let committees = Committees::of(founders).expect("founders");
            let key = self.certificate.signing_key.subject_public_key_info();
            let pinned = pin
                .then(|| record::canonical::Digest::of(Domain::TLS_KEY, &[&key]))
                .into_iter()
                .collect();
            let identity: (&Path, &Path) = (&config.certificate, &config.private_key);
            Network {
                committees,
                client: tls::client_of_nodes(&config.ca, identity, pinned).expect("good"),
            }
        }

        async fn node(&self, manner: Manner) -> FakeNode {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound");
            let key = PrivatePkcs8KeyDer::from(self.certificate.signing_key.serialize_der());
            let tls = rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![self.certificate.cert.der().clone()], PrivateKeyDer::from(key))
                .expect("good");
            let acceptor = TlsAcceptor::from(Arc::new(tls));
            let (manner, behaves) = watch::channel(manner);
            let (count, asked) = watch::channel(0);
            let (validators, network) = (self.validators.clone(), self.network);
            let (held, holds) = watch::channel(Vec::<(String, Submission)>::new());
            tokio::spawn(async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    let (behaves, count, held) = (behaves.clone(), count.clone(), held.clone());
                    let validators = validators.clone();
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(tcp).await else { return };
                        let service = service_fn(|request: Request<Incoming>| async {
                            count.send_modify(|n| *n += 1);
                            let manner = *behaves.borrow();
                            Ok::<_, Infallible>(answer(request, manner, &held, (&validators, &network)).await)
                        });
                        let _ended = http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            });
            FakeNode {
                address,
                manner,
                asked,
                held: holds,
            }
        }
    }

    async fn answer(
        request: Request<Incoming>,
        manner: Manner,
        held: &watch::Sender<Vec<(String, Submission)>>,
        (validators, network): (&[SigningKey], &NetworkId),
    ) -> Response<Full<Bytes>> {
        let reply = |status: u16, body: String| {
            let status = StatusCode::from_u16(status).expect("a status");
            Response::builder()
                .status(status)
                .body(Full::new(body.into()))
                .expect("well-formed")
        };
        match manner {
            Manner::Busy => return reply(503, String::new()),
            Manner::Refuses => return reply(422, "not to my taste".to_owned()),
            Manner::NotYet => return reply(409, String::new()),
            _ => {}
        }
        let path = request.uri().path().to_owned();
        if path == "/api/v1/bundles" {
            let body = request.into_body().collect().await.expect("reads").to_bytes();
            let matched = Submission::decode(&body).expect("matched");
            if matches!(manner, Manner::ReadyFor(key) if key != matched.commitment().key) {
                return reply(409, String::new());
            }
            let bundle = matched.commitment().bundle;
            let (transaction, payload) = matched.into_parts();
            held.send_modify(|all| {
                all.push((
                    bundle.to_string(),
                    Submission {
                        transaction,
                        payload: payload.into(),
                    },
                ))
            });
            let signer = if manner == Manner::ForgesAdmissions {
                SigningKey::random()
            } else {
                validators[0].clone()
            };
            return reply(
                202,
                serde_json::to_string(&Admission::sign(bundle, 1, &signer)).expect("encodes"),
            );
        }
        let bundle = path.rsplit('/').next().expect("a path").to_owned();
        let found = held
            .borrow()
            .iter()
            .find(|(id, _)| *id == bundle)
            .map(|(_, s)| s.transaction.clone());
        match found {
            Some(_) if manner == Manner::Forgets => reply(404, String::new()),
            Some(transaction) if manner == Manner::ForgesReceipts => {
                let liars: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
                reply(200, receipt_text(network, transaction, &liars))
            }
            Some(transaction) => reply(200, receipt_text(network, transaction, &validators[..3])),
            None => reply(404, String::new()),
        }
    }

    async fn finals(home: &Home) -> u64 {
        home.outbox.report().await.expect("runs").counters.final_readings
    }

    async fn until_final(home: &Home, readings: u64) {
        until_final_within(home, readings, 200).await;
    }

    async fn until_final_within(home: &Home, readings: u64, looks: u32) {
        for _ in 0..looks {
            if finals(home).await == readings {
                return;
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("{} of {readings} are final", finals(home).await);
    }

    fn start(fog: &Fog, home: &Home, nodes: &[&FakeNode]) -> Uplink {
        let config = fog.config(nodes);
        Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts")
    }

    #[tokio::test]
    async fn what_is_spooled_before_and_after_the_start_becomes_final_and_is_forgotten() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Honest).await;
        home.spool(&home.oximeter, 1).await;
        let uplink = start(&fog, &home, &[&node]);
        for seq in 2..=40 {
            home.spool(&home.oximeter, seq).await;
        }
        until_final(&home, 40).await;
        assert_eq!(home.outbox.tickets(0, 10).expect("reads"), []);
        assert_eq!(uplink.view().nodes()[0].state, "up");
    }

    #[tokio::test]
    async fn another_node_takes_over_from_one_that_fails_forges_or_forgets() {
        for bad in [
            Manner::Busy,
            Manner::NotYet,
            Manner::ForgesAdmissions,
            Manner::ForgesReceipts,
            Manner::Forgets,
        ] {
            let home = Home::open();
            let fog = Fog::of(&home);
            let (worse, good) = (fog.node(bad).await, fog.node(Manner::Honest).await);
            let uplink = start(&fog, &home, &[&worse, &good]);
            for seq in 1..=4 {
                home.spool(&home.oximeter, seq).await;
            }
            until_final(&home, 4).await;
            assert!(*worse.asked.borrow() > 0, "{bad:?} was never asked");
            uplink.stop();
        }
    }

    #[tokio::test]
    async fn a_forged_receipt_alone_makes_nothing_forgotten() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::ForgesReceipts).await;
        let _uplink = start(&fog, &home, &[&node]);
        home.spool(&home.oximeter, 1).await;
        sleep(Duration::from_millis(500)).await;
        assert!(*node.asked.borrow() > 2, "it was asked again");
        assert_eq!(finals(&home).await, 0);
        node.manner.send_replace(Manner::Honest);
        until_final(&home, 1).await;
    }

    #[tokio::test]
    async fn one_refusal_is_not_believed_and_two_of_four_set_the_bundle_aside() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let (no, yes) = (fog.node(Manner::Refuses).await, fog.node(Manner::Honest).await);
        let uplink = start(&fog, &home, &[&no, &yes]);
        home.spool(&home.oximeter, 1).await;
        home.spool(&home.oximeter, 2).await;
        until_final(&home, 2).await;
        uplink.stop();
        yes.manner.send_replace(Manner::Refuses);
        let _uplink = start(&fog, &home, &[&no, &yes]);
        home.spool(&home.oximeter, 3).await;
        for _ in 0..200 {
            if home.outbox.report().await.expect("runs").counters.refused_bundles == 1 {
                return;
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("not set aside");
    }

    #[tokio::test]
    async fn a_node_that_is_named_twice_refuses_once() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let (no, yes) = (fog.node(Manner::Refuses).await, fog.node(Manner::Honest).await);
        home.spool(&home.oximeter, 1).await;
        let uplink = start(&fog, &home, &[&no, &no]);
        let mut asked = no.asked.clone();
        asked.wait_for(|asked| *asked > 0).await.expect("lives");
        sleep(Duration::from_millis(300)).await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.refused_bundles, report.spooled_bundles), (0, 1));
        assert_eq!(*asked.borrow(), 1, "it is one node");
        uplink.stop();
        let _uplink = start(&fog, &home, &[&no, &no, &yes]);
        until_final(&home, 1).await;
    }

    #[test]
    fn nodes_that_are_named_twice_or_by_more_than_their_address_are_faults() {
        let named = |nodes: &[&str]| {
            let nodes = nodes.iter().map(ToString::to_string).collect();
            let config = Config {
                nodes,
                ..Config::default()
            };
            let faults = config.prepare(&follow::tests::genesis()).expect_err("no such files");
            faults.join("\n").matches("uplink.nodes").count()
        };
        assert_eq!(named(&["https://a:1", "https://b:1"]), 0);
        assert_eq!(named(&["https://a:1", "https://A:1/", "https://a:1"]), 1, "said once");
        assert_eq!(named(&["https://a", "https://a:443"]), 1, "one port");
        assert_eq!(named(&["https://x@a:1", "https://a:1#x", "https://a:1/x"]), 3);
    }

    #[tokio::test]
    async fn bundles_that_no_node_is_ready_for_do_not_hold_up_the_others() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::NotYet).await;
        let config = Config {
            in_flight_max: 2,
            ..fog.config(&[&node])
        };
        let uplink = Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts");
        for seq in 1..=4 {
            home.spool(&home.oximeter, seq).await;
        }
        let held = |n| format!("{n} bundles have been tried");
        for tried in [1, 2, 3, 4] {
            for _ in 0..400 {
                if *node.asked.borrow() > tried * 8 {
                    break;
                }
                sleep(Duration::from_millis(25)).await;
            }
            assert!(*node.asked.borrow() > tried * 8, "{}", held(tried));
        }
        node.manner.send_replace(Manner::Honest);
        until_final(&home, 4).await;
        uplink.stop();
    }

    #[tokio::test]
    async fn however_many_bundles_no_node_is_ready_for_another_patients_becomes_final_promptly() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::ReadyFor(home.scale.subject.id())).await;
        for seq in 1..=120 {
            home.spool(&home.oximeter, seq).await;
        }
        home.spool(&home.scale, 1).await;
        let config = Config {
            // They are always due again: only the share keeps them from taking every flight.
            lay_by_ms: 10,
            ..fog.config(&[&node])
        };
        let _uplink = Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts");
        until_final(&home, 1).await;
        home.spool(&home.scale, 2).await;
        until_final(&home, 2).await;
    }

    #[tokio::test]
    async fn an_alarm_goes_before_everything_that_waits() {
        let mut home = Home::open();
        home.stock(200, 1).await;
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Busy).await;
        let config = Config {
            in_flight_max: 4,
            ..fog.config(&[&node])
        };
        let _uplink = Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts");
        for seq in 1..=20 {
            home.spool(&home.scale, seq).await;
        }
        let alarm = Measurement {
            urgency: Urgency::Alarm,
            ..home.scale.measurement(21, 97)
        };
        home.outbox.append(alarm).await.expect("taken");
        node.manner.send_replace(Manner::Honest);
        until_final_within(&home, 221, 800).await;
        let first = node.held.borrow()[..16].to_vec();
        let is_alarm = |(_, submission): &(String, Submission)| {
            let sealed = record::bundle::SealedBundle::decode(&submission.payload).expect("sealed");
            let opened = sealed.open(&home.sealer.network, &home.scale.secret);
            opened.is_ok_and(|bundle| {
                let key = home.scale.key.public();
                bundle.entries[0]
                    .reading
                    .decode(|_| Some(key))
                    .is_ok_and(|reading| reading.seq == 21)
            })
        };
        assert!(first.iter().any(is_alarm), "it is among the first that the node admits");
    }

    #[tokio::test]
    async fn a_backlog_drains_in_order_and_at_its_pace_while_live_readings_go_before_it() {
        const STORED: u64 = 1_200;
        let mut home = Home::open();
        home.stock(STORED, 1).await;
        let stored: Vec<_> = home
            .outbox
            .tickets(0, usize::MAX)
            .expect("reads")
            .iter()
            .map(|t| t.bundle.to_string())
            .collect();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Honest).await;
        let config = Config {
            in_flight_max: 8,
            backlog_bundles_per_s_max: NonZeroU32::new(300).expect("not zero"),
            ..fog.config(&[&node])
        };
        let begin = std::time::Instant::now();
        let _uplink = Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts");
        for seq in 1..=20 {
            home.spool(&home.scale, seq).await;
            let order = STORED + seq - 1;
            while home
                .outbox
                .tickets(order, 1)
                .expect("reads")
                .iter()
                .any(|t| t.order == order)
            {
                assert!(
                    begin.elapsed() < Duration::from_secs(30),
                    "live reading {seq} never became final"
                );
                sleep(Duration::from_millis(2)).await;
            }
        }
        let drained = finals(&home).await - 20;
        let most = 300 * u64::try_from(begin.elapsed().as_millis()).expect("short") / 1_000 + 60;
        assert!(drained < STORED, "the live ones were final while stored ones waited");
        assert!(drained <= most, "{drained} of at most {most}");
        until_final_within(&home, STORED + 20, 1_200).await;
        let admitted = node.admitted();
        let drained: Vec<_> = admitted.iter().filter(|id| stored.contains(id)).collect();
        let place = |id: &String| stored.iter().position(|other| other == id).expect("stored");
        let furthest = drained.iter().enumerate().map(|(at, id)| place(id).abs_diff(at)).max();
        assert!(
            furthest.is_some_and(|places| places <= 16),
            "no further apart than flights: {furthest:?}"
        );
        assert_eq!(admitted.len() as u64, STORED + 20, "each once");
    }

    #[tokio::test]
    async fn a_bundle_that_no_node_is_ready_for_is_tried_less_and_less_often() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::NotYet).await;
        let config = Config {
            lay_by_ms: 60_000,
            ..fog.config(&[&node])
        };
        let _uplink = Uplink::start(&config, fog.network(&config, true), home.outbox.clone()).expect("starts");
        home.spool(&home.oximeter, 1).await;
        sleep(Duration::from_millis(1_500)).await;
        let asked = *node.asked.borrow();
        assert!((4..=9).contains(&asked), "10 ms, 20 ms, 40 ms ..: {asked}");
    }

    #[tokio::test]
    async fn a_node_that_refuses_a_bundle_is_not_asked_in_a_loop_while_the_others_are_down() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let (no, down) = (fog.node(Manner::Refuses).await, fog.node(Manner::Busy).await);
        let uplink = start(&fog, &home, &[&no, &down]);
        home.spool(&home.oximeter, 1).await;
        sleep(Duration::from_millis(500)).await;
        assert_eq!(*no.asked.borrow(), 1, "its word is known");
        down.manner.send_replace(Manner::Honest);
        until_final(&home, 1).await;
        uplink.stop();
    }

    #[tokio::test]
    async fn a_damaged_bundle_is_counted_and_set_aside_and_never_sent() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        let ticket = home.outbox.tickets(0, 1).expect("reads")[0];
        home.rot(&ticket).await;
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Honest).await;
        let _uplink = start(&fog, &home, &[&node]);
        home.spool(&home.scale, 1).await;
        until_final(&home, 1).await;
        for _ in 0..200 {
            let report = home.outbox.report().await.expect("runs");
            if report.counters.damaged_bundles == 1 {
                assert_eq!((report.refused[0].bundle, report.spooled_bundles), (ticket.bundle, 0));
                assert_eq!(*node.asked.borrow(), 2, "the good one: submitted, and its receipt");
                return;
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("not set aside");
    }

    #[tokio::test]
    async fn a_node_whose_key_is_not_pinned_is_not_spoken_to() {
        let home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Honest).await;
        let config = fog.config(&[&node]);
        let uplink = Uplink::start(&config, fog.network(&config, false), home.outbox.clone()).expect("starts");
        home.spool(&home.oximeter, 1).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!((*node.asked.borrow(), finals(&home).await), (0, 0));
        assert_eq!(uplink.view().in_flight(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let home_key = rcgen::generate_simple_self_signed(["gateway".to_owned()]).expect("makes");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("gateway.crt"), home_key.cert.pem()).expect("writes");
        std::fs::write(path("gateway.key"), home_key.signing_key.serialize_pem()).expect("writes");
        let client = || {
            let identity = (&*path("gateway.crt"), &*path("gateway.key"));
            tls::client_of_nodes(&path("gateway.crt"), identity, HashSet::new()).map(|_| ())
        };
        std::fs::set_permissions(path("gateway.key"), std::fs::Permissions::from_mode(0o640)).expect("sets");
        assert!(client().expect_err("readable").contains("0600"));
        std::fs::set_permissions(path("gateway.key"), std::fs::Permissions::from_mode(0o600)).expect("sets");
        assert_eq!(client(), Ok(()));
    }

    #[tokio::test]
    async fn what_was_under_way_is_submitted_again_after_a_restart() {
        let mut home = Home::open();
        let fog = Fog::of(&home);
        let node = fog.node(Manner::Busy).await;
        let uplink = start(&fog, &home, &[&node]);
        home.spool(&home.oximeter, 1).await;
        sleep(Duration::from_millis(100)).await;
        uplink.stop();
        drop(uplink);
        sleep(Duration::from_millis(50)).await;
        home.reopen().await;
        node.manner.send_replace(Manner::Honest);
        let _uplink = start(&fog, &home, &[&node]);
        until_final(&home, 1).await;
    }
}

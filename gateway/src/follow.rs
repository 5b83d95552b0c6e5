//! Follows the chain for changes of this gateway's devices: every fog node is asked, and its answer waited for.
//!
//! A question stays at each node until something changes, so a revocation is obeyed as soon as f + 1 nodes have applied its
//! block. What is believed is kept on the disk first: a restart accepts nobody who is out. Without a link to the fog the
//! gateway keeps what it knows.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use ledger::{
    block::Height,
    device::{ROLL_BYTES_MAX, ROLL_DEVICES_ENOUGH, Roll},
};
use record::ids::GatewayId;
use reqwest::{Client, StatusCode, Url};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};

use crate::{
    directory::Directory,
    standing::{Standing, Words},
    uplink::{self, Voters},
};

/// A node may hold a question for so long, in milliseconds.
const WAIT_MS: u64 = 25_000;
/// A node that does not connect within this time is asked again later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a question may take beyond its waiting time.
const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// A node is asked so often at most: one that says something new each time does not keep the gateway busy.
const ASK_EVERY_MIN: Duration = Duration::from_millis(100);
/// The same when it has nothing new and does not wait.
const ASK_IDLE_MIN: Duration = Duration::from_secs(1);
/// First and longest pause after a node has failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// What could not be kept is tried again after this time.
const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// Answers that wait to be heard, at most; a node whose answer waits is not asked meanwhile.
const ANSWERS_MAX: usize = 4;

/// Whom to ask, and what for.
#[derive(Debug)]
pub struct Following {
    /// This gateway.
    pub gateway: GatewayId,
    /// The nodes.
    pub nodes: Vec<Url>,
    /// A client that they know.
    pub client: Client,
    /// Who votes: how many may lie.
    pub voters: Voters,
    /// What obeys.
    pub directory: Directory,
    /// Where it is kept.
    pub folder: PathBuf,
}

/// A client for long questions.
///
/// # Errors
/// It cannot be made of this TLS.
pub fn client(tls: rustls::ClientConfig) -> Result<Client, uplink::Error> {
    Ok(uplink::client(tls, CONNECT_TIMEOUT)?)
}

impl Following {
    /// Follows until it is dropped.
    pub async fn run(self) {
        let (answers, mut heard) = mpsc::channel(ANSWERS_MAX);
        let mut asking = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let question = Question {
                client: self.client.clone(),
                node: node.clone(),
                gateway: self.gateway.clone(),
            };
            asking.spawn(question.ask(index, answers.clone()));
        }
        if self.nodes.len() <= self.voters.liars_max() {
            let needed = self.voters.liars_max() + 1;
            tracing::warn!(
                needed,
                "uplink.nodes names too few nodes for a revocation to be believed"
            );
        }
        let mut words = Words::of(self.nodes.len());
        let mut told = HashSet::new();
        let mut unkept = None;
        loop {
            tokio::select! {
                Some(Answer { node, roll, again }) = heard.recv() => {
                    if roll.devices.len() < ROLL_DEVICES_ENOUGH {
                        told.insert(node);
                    }
                    let known = self.directory.standing();
                    let believed = words.hear(node, roll, self.voters.liars_max() + 1, &known);
                    // Who asked may have been stopped.
                    let _unheard = again.send(words.has_forgotten(node));
                    if let Some(standing) = believed {
                        unkept = self.keep(standing.clone()).await;
                        self.obey(&known, standing);
                    }
                    if told.len() >= self.enough_to_be_silent() {
                        self.directory.trust_silence();
                    }
                }
                () = sleep(KEEP_AGAIN), if unkept.is_some() => {
                    if let Some(standing) = unkept.take() {
                        unkept = self.keep(standing).await;
                    }
                }
            }
        }
    }

    /// How many nodes must have told before what none of them says is not there: a device is believed when one more than may lie
    /// say the same, and as many again may lie, or lag.
    fn enough_to_be_silent(&self) -> usize {
        let liars_max = self.voters.liars_max();
        (2 * liars_max + 1).min(self.nodes.len()).max(liars_max + 1)
    }

    /// Keeps what is believed; gives it back if the disk does not take it.
    async fn keep(&self, standing: Standing) -> Option<Standing> {
        let (folder, standing) = (self.folder.clone(), Arc::new(standing));
        let copy = Arc::clone(&standing);
        let kept = tokio::task::spawn_blocking(move || copy.keep(&folder)).await;
        match kept {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                metrics::counter!("gateway_follow_unkept_total").increment(1);
                // Obeyed all the same: a device that is out is refused, if only until a restart.
                tracing::error!(%error, "what the chain says of the devices cannot be kept; it is tried again");
                Some(Arc::unwrap_or_clone(standing))
            }
            // The runtime is going down.
            Err(_stopping) => None,
        }
    }

    fn obey(&self, known: &Standing, standing: Standing) {
        let is_out = |standing: &Standing| standing.devices.values().filter(|d| d.revoked.is_some()).count();
        let (devices, out, before) = (standing.devices.len(), is_out(&standing), is_out(known));
        metrics::gauge!("gateway_devices_on_chain").set(devices as f64);
        metrics::gauge!("gateway_devices_revoked").set(out as f64);
        if standing.revoked.is_some() && known.revoked.is_none() {
            tracing::error!("this gateway is revoked: no fog node takes its readings any more");
        }
        if out > before {
            tracing::warn!(revoked = out - before, "devices of this gateway were revoked");
        }
        self.directory.obey(standing);
    }
}

/// What a node said.
struct Answer {
    node: usize,
    roll: Roll,
    /// Whether it is to be asked from the beginning again.
    again: oneshot::Sender<bool>,
}

/// One node, asked again and again.
struct Question {
    client: Client,
    node: Url,
    gateway: GatewayId,
}

impl Question {
    async fn ask(self, node: usize, answers: mpsc::Sender<Answer>) {
        let (mut above, mut failures) = (Height(0), 0);
        loop {
            let Some(roll) = self.roll(above).await else {
                // Not logged: the uplink says which node fails, and says it once.
                sleep(uplink::growing(PAUSE, failures)).await;
                failures += 1;
                continue;
            };
            failures = 0;
            let pause = if roll.through > above {
                ASK_EVERY_MIN
            } else {
                ASK_IDLE_MIN
            };
            above = above.max(roll.through);
            let (again, is_forgotten) = oneshot::channel();
            if answers.send(Answer { node, roll, again }).await.is_err() {
                return;
            }
            match is_forgotten.await {
                Ok(false) => sleep(pause).await,
                Ok(true) => {
                    // The others may catch up meanwhile; one that never agrees with them is not asked more often than that.
                    above = Height(0);
                    sleep(PAUSE.1).await;
                }
                Err(_stopping) => return,
            }
        }
    }

    async fn roll(&self, above: Height) -> Option<Roll> {
        let path = format!(
            "/api/v1/gateways/{}/devices?above={above}&wait_ms={WAIT_MS}",
            self.gateway
        );
        let url = self.node.join(&path).ok()?;
        let question = self.client.get(url);
        let question = question.timeout(Duration::from_millis(WAIT_MS) + ANSWER_GRACE);
        let answer = question.send().await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let body = uplink::body(answer, ROLL_BYTES_MAX).await?;
        serde_json::from_slice(&body).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        enrolment::{Enrolment, Enrolments},
        standing::tests::{cuff, device, roll},
    };
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use ledger::{
        genesis::{Genesis, Organization, Role, Validator},
        handover::Committees,
        policy::ValidityPolicy,
    };
    use record::{
        bundle::{Category, SubjectSecret},
        canonical::Digest,
        signature::SigningKey,
    };
    use std::{collections::BTreeMap, convert::Infallible, path::Path};
    use tokio::{net::TcpListener, sync::watch, time::timeout};

    /// A fog node that tells one thing; it is asked over real HTTP, and waits as the real one does.
    async fn node(tells: watch::Receiver<Roll>) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tells = tells.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let mut tells = tells.clone();
                    async move {
                        let query = request.uri().query().unwrap_or_default().to_owned();
                        let above = query.split('&').find_map(|pair| pair.strip_prefix("above="));
                        let above = Height(above.and_then(|above| above.parse().ok()).unwrap_or(0));
                        let roll = tells.wait_for(|roll| roll.through > above).await.expect("told").clone();
                        let body = serde_json::to_vec(&roll).expect("encodes");
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        url.parse().expect("a URL")
    }

    fn following(nodes: Vec<Url>, directory: &Directory, folder: &Path) -> Following {
        Following {
            gateway: "home-1".parse().expect("good"),
            nodes,
            client: Client::new(),
            voters: Voters::new(Committees::founding(&genesis())),
            directory: directory.clone(),
            folder: folder.to_owned(),
        }
    }

    pub(crate) fn genesis() -> Genesis {
        let key = SigningKey::random();
        let id: record::ids::OrganizationId = "hospital-a".parse().expect("good");
        let validator = |_| Validator {
            organization: id.clone(),
            key: SigningKey::random().public(),
            tls: Digest::ZERO,
            address: None,
        };
        Genesis {
            name: "test".to_owned(),
            founded_ms: 1,
            validators: (0..4).map(validator).collect(),
            organizations: vec![Organization {
                id: id.clone(),
                name: "A".to_owned(),
                role: Role::Provider,
                key: key.public(),
            }],
            policy: ValidityPolicy::default(),
        }
    }

    #[tokio::test]
    async fn a_revocation_is_obeyed_as_soon_as_two_of_four_nodes_have_it_and_kept() {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("temporary folder");
        let key = SigningKey::random().public();
        let (enrolled, out) = (device(&key, None), device(&key, Some(7)));
        let tell: Vec<_> = (0..4).map(|_| watch::Sender::new(roll(&enrolled))).collect();
        let mut nodes = Vec::new();
        for sender in &tell {
            nodes.push(node(sender.subscribe()).await);
        }
        let directory = Directory::from(("home-1".parse().expect("good"), Enrolments::default()));
        let following = following(nodes, &directory, folder.path());
        let task = tokio::spawn(following.run());
        let until = async |done: &dyn Fn() -> bool| {
            while !done() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(10);
        timeout(patience, until(&|| directory.len() == 1))
            .await
            .expect("enrolled");
        tell[3].send_replace(roll(&out));
        sleep(Duration::from_millis(500)).await;
        assert!(!directory.is_out(&cuff()), "one of four may lie");
        tell[0].send_replace(roll(&out));
        let second = Duration::from_secs(1);
        timeout(second, until(&|| directory.is_out(&cuff())))
            .await
            .expect("two agree");
        let kept = Standing::load(folder.path()).expect("reads");
        assert_eq!(kept.devices[&cuff()], out, "on the disk before it is obeyed");
        drop(tell);
        sleep(Duration::from_millis(300)).await;
        assert!(directory.is_out(&cuff()), "without a link it keeps what it knows");
        task.abort();
    }

    #[tokio::test]
    async fn a_listed_device_is_one_that_the_chain_does_not_know_when_three_of_four_nodes_have_told() {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("temporary folder");
        let scale: record::ids::DeviceId = "scale-1".parse().expect("good");
        let listed = Enrolment {
            device: scale.clone(),
            key: SigningKey::random().public(),
            subject: SubjectSecret::generate(Category::Vitals, 1).expect("random numbers").1,
        };
        let list = Enrolments::of(vec![listed]).expect("good");
        let directory = Directory::from(("home-1".parse().expect("good"), list));
        let silent = Roll {
            through: Height(0),
            revoked: None,
            devices: BTreeMap::new(),
        };
        let tell: Vec<_> = (0..4).map(|_| watch::Sender::new(silent.clone())).collect();
        let mut nodes = Vec::new();
        for sender in &tell {
            nodes.push(node(sender.subscribe()).await);
        }
        let task = tokio::spawn(following(nodes, &directory, folder.path()).run());
        let known = roll(&device(&SigningKey::random().public(), None));
        for told in [3, 1] {
            tell[told].send_replace(known.clone());
            sleep(Duration::from_millis(500)).await;
            assert_eq!(directory.not_on_chain(), None, "one of them may keep something back");
        }
        tell[2].send_replace(known);
        let told = async {
            while directory.not_on_chain().is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), told).await.expect("three have told");
        assert_eq!(directory.not_on_chain(), Some(vec![scale]));
        task.abort();
    }
}

//! The composition: the only file that names every room. It opens them, joins them, and stops them together.

mod files;
mod indexing;
mod replacement;
mod rooms;
mod seats;

use std::{io, net::SocketAddr, time::Duration};

use ::http::HeaderMap;
use ledger::genesis::Genesis;
use record::{ids::OrganizationId, signature::SigningKey};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub(crate) use files::{daemon_secret, genesis, identity, keep_private};
pub use indexing::Findings;
pub use replacement::{Claim, Keys};
use rooms::{Stores, Work};

use crate::{
    audit::Audited,
    config::{Config, Faults},
    consensus::{self, Consensus},
    documents::Desk,
    http::{self, Context, Rooms, caller::Peer, tls::Identity},
    replace,
    space::{self, Space},
    telemetry::Telemetry,
};

/// How long the tasks may take to end after they were told to, beyond the time that requests have.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection to another node may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a node does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A room does not open.
    #[error("{room} does not open")]
    Open {
        /// Which.
        room: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The address is taken or not this machine's.
    #[error("http.listen {address} cannot be bound")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A task ended that should not: half a node is worse than none.
    #[error("{task} has ended: {reason}")]
    Ended {
        /// Which.
        task: &'static str,
        /// As it said.
        reason: String,
    },
    /// A lost node could not be rebuilt now.
    #[error("the node is not rebuilt")]
    Rebuild(#[from] replace::Error),
}

pub(crate) fn open<E: Into<Box<dyn std::error::Error + Send + Sync>>>(room: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Open {
        room,
        source: source.into(),
    }
}

/// A configuration whose files were read and fit together; nothing was opened or bound yet.
#[derive(Debug)]
pub struct Node {
    config: Config,
    genesis: Genesis,
    key: SigningKey,
    desk: Option<Desk>,
    identity: Identity,
}

impl Node {
    /// Reads the files that the configuration names and checks that they belong together.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn prepare(config: Config) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let genesis = genesis(&config.genesis, &mut faults);
        let key = files::key("key", &config.key, &mut faults);
        let desk = files::desk(&config.documents.desk, &mut faults);
        let identity = identity(&config.http, &mut faults);
        if let Some(file) = config.index.password_file() {
            keep_private("index.mysql.password_file", file, &mut faults);
        }
        if let Some(passphrase_file) = &config.keyring.passphrase_file {
            faults.note(
                "keyring.passphrase_file",
                crate::keyring::Passphrase::read(passphrase_file),
            );
        }
        daemon_secret(&config.vault, &mut faults);
        let (Some(genesis), Some(key), Some(identity)) = (genesis, key, identity) else {
            return Err(faults);
        };
        for peer in config.consensus.missing_peers(&genesis, &key.public()) {
            faults.add(format_args!("consensus.peers has no address for validator {peer}"));
        }
        match genesis
            .validators
            .iter()
            .find(|validator| validator.key == key.public())
        {
            None if config.consensus.newcomer => {}
            None => faults.add(format_args!(
                "key: {} is no validator of this network's genesis; a node that joins later sets consensus.newcomer",
                key.public()
            )),
            Some(validator) => {
                if validator.organization != config.organization {
                    faults.add(format_args!(
                        "organization: the genesis says that {} runs this validator",
                        validator.organization
                    ));
                }
                if identity.chain.first().and_then(Peer::identity) != Some(validator.tls) {
                    faults.add("http.certificate: the genesis pins another TLS key for this validator");
                }
            }
        }
        faults.none_or(Self {
            config,
            genesis,
            key,
            desk,
            identity,
        })
    }

    /// Where this node answers, its organisation, and a client that it lets in.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn member(&self) -> Result<(reqwest::Client, String, &OrganizationId, &Genesis), Error> {
        let client = peers_client(&self.identity, HeaderMap::new())?;
        Ok((client, self.own_url(), &self.config.organization, &self.genesis))
    }

    fn own_url(&self) -> String {
        if self.config.http.public_url.is_empty() {
            format!("https://{}", self.config.http.listen)
        } else {
            self.config.http.public_url.trim_end_matches('/').to_owned()
        }
    }

    /// The nodes that an audit compares, this one first, and the client that asks them.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn audited(&self) -> Result<(reqwest::Client, Vec<Audited>, &Genesis), Error> {
        let own = self.own_url();
        let peers = self.config.vault.exchange.peers.iter().map(ToString::to_string);
        let nodes = std::iter::once(own).chain(peers).map(|url| Audited { url });
        Ok((
            peers_client(&self.identity, HeaderMap::new())?,
            nodes.collect(),
            &self.genesis,
        ))
    }

    /// Runs until SIGTERM or SIGINT (a good end), or until a task ends (never a good one).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run(self, telemetry: Telemetry) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(open("signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(open("signals"))?;
        tokio::select! {
            waited = self.wait_for_room(&telemetry) => waited?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        let listen = self.config.http.listen;
        let listener = self.listen().await?;
        let name = self.config.name.clone();
        let shutdown = CancellationToken::new();
        let drain_timeout = Duration::from_millis(self.config.http.drain_timeout_ms);
        let mut running = self.start(listener, telemetry, &shutdown).await?;
        tracing::info!(%name, %listen, "running");
        let end = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            (task, reason) = running.first_end() => Err(Error::Ended { task, reason }),
        };
        tracing::info!(%name, "stopping");
        shutdown.cancel();
        running.stop(drain_timeout + STOP_TIMEOUT).await;
        end
    }

    async fn listen(&self) -> Result<TcpListener, Error> {
        let address = self.config.http.listen;
        let listener = TcpListener::bind(address).await;
        listener.map_err(|source| Error::Listen { address, source })
    }

    /// Opens nothing on a full disk, where the engine would break down, and says so to whoever asks, until there is room.
    async fn wait_for_room(&self, telemetry: &Telemetry) -> Result<(), Error> {
        let space = Space::of(&self.config.data_dir, self.config.vault.disk_reserve_bytes);
        if !space.is_short() {
            return Ok(());
        }
        let listener = self.listen().await?;
        let telemetry = telemetry.clone();
        let done = CancellationToken::new();
        let door = http::standby::serve(listener, &self.identity, (&self.config.http, telemetry), done.clone());
        let enough = async {
            space.enough().await;
            done.cancel();
        };
        let (served, ()) = tokio::join!(door, enough);
        served.map_err(open("http"))
    }

    /// Opens the rooms from the innermost outwards and starts their tasks.
    async fn start(
        self,
        listener: TcpListener,
        telemetry: Telemetry,
        shutdown: &CancellationToken,
    ) -> Result<Running, Error> {
        let stores = Stores::open(&self).await?;
        let Self {
            config,
            genesis,
            key,
            desk,
            identity,
        } = self;
        let consensus = consensus::Parts {
            data_dir: config.data_dir.clone(),
            genesis: genesis.clone(),
            key: key.clone(),
            mempool: stores.mempool.clone(),
            chain: stores.chain.clone(),
            vault: stores.vault.clone(),
        };
        let consensus = consensus::start(config.consensus.clone(), consensus).map_err(open("consensus"))?;
        let (runs, consensus_runs) = watch::channel(true);
        let validator = key.public();
        let (chain, vault) = (stores.chain.clone(), stores.vault.clone());
        let space = vault.space().clone();
        let work = Work::on(&stores, &config, (key, desk));
        let rooms = Rooms {
            chain: stores.chain,
            mempool: stores.mempool,
            vault: stores.vault,
            index: stores.index,
            intake: work.intake,
            documents: work.documents,
            query: work.query,
            disclosure: work.disclosure,
            possession: work.possession.clone(),
            recovery: work.recovery.clone(),
            telemetry: telemetry.clone(),
            consensus_runs,
        };
        let context = Context::new(config.http, genesis, validator, rooms);
        let mut tasks = JoinSet::new();
        tasks.spawn(named("telemetry", telemetry.keep_up()));
        tasks.spawn(async move {
            space.spent().await;
            ("space", space::SPENT.to_owned())
        });
        tasks.spawn(named("projection", work.projection.run()));
        let seats = seats::meet(chain, validator, vault, work.recovery.clone());
        tasks.spawn(named("seats", seats));
        tasks.spawn(named("retention", work.retention.run()));
        tasks.spawn(named("leftovers", work.leftovers.run()));
        tasks.spawn(named("erasure", work.erasure.run()));
        tasks.spawn(named("recovery", work.recovery.run()));
        tasks.spawn(named("possession", work.possession.run()));
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            let end = http::serve(listener, &identity, context, shutdown).await;
            (
                "http",
                end.map_or_else(|error| error.to_string(), |()| "it was told to".to_owned()),
            )
        });
        Ok(Running { tasks, consensus, runs })
    }
}

pub(crate) async fn named(task: &'static str, run: impl Future<Output = ()>) -> (&'static str, String) {
    run.await;
    (task, "without a reason".to_owned())
}

/// The node's tasks.
struct Running {
    tasks: JoinSet<(&'static str, String)>,
    consensus: Consensus,
    runs: watch::Sender<bool>,
}

impl Running {
    /// Waits for the first task that ends.
    async fn first_end(&mut self) -> (&'static str, String) {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => ended.expect("a panic aborts the process before a join can see it"),
            reason = self.consensus.stopped() => {
                self.runs.send_replace(false);
                ("consensus", reason)
            }
        }
    }

    /// Lets HTTP finish what it answers; what the other tasks lose is made again from the chain.
    async fn stop(mut self, within: Duration) {
        let drained = async {
            while let Some(ended) = self.tasks.join_next().await {
                if ended.is_ok_and(|(task, _)| task == "http") {
                    return;
                }
            }
        };
        if tokio::time::timeout(within, drained).await.is_err() {
            tracing::warn!("http did not end in time");
        }
        self.tasks.shutdown().await;
        if tokio::time::timeout(within, self.consensus.stop()).await.is_err() {
            tracing::warn!("consensus did not stop in time");
        }
    }
}

/// The client for other nodes: TLS 1.3 with our certificate, the network's CA alone, no redirects and no proxy.
pub(crate) fn peers_client(identity: &Identity, headers: HeaderMap) -> Result<reqwest::Client, Error> {
    let tls = identity.client().map_err(open("vault"))?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        // Who asks for proof looks at who answered.
        .tls_info(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT);
    client.build().map_err(open("vault"))
}

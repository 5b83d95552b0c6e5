//! An observer: another composition of the same rooms, without engine, chain, mempool and vote. What it serves, it has proven.

use std::{fs, path::Path, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use ledger::{genesis::Genesis, handover::Committees, proof::ValidatorSet};
use record::ids::OrganizationId;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    config::{self, Faults},
    erasure::{Forgetting, Forgotten},
    follow::{self, Follower},
    http::{observer as door, tls::Identity, token::claimed_issuer},
    index::Index,
    keyring::{Keyring, Passphrase},
    node::{Error, STOP_TIMEOUT, daemon_secret, genesis, identity, keep_private, named, open, peers_client},
    projection::Projection,
    proofs::Proofs,
    query::{self, Query},
    recovery::{Incidents, mend_rows},
    telemetry::Telemetry,
    vault::Vault,
};

/// A token file has at most this many bytes.
const TOKEN_BYTES_MAX: usize = 8_192;

/// A configuration whose files were read and fit together; nothing was opened or bound yet.
#[derive(Debug)]
pub struct Observer {
    config: config::Observer,
    genesis: Genesis,
    identity: Identity,
    token: HeaderValue,
}

impl Observer {
    /// Reads the files that the configuration names and checks that they belong together.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn prepare(config: config::Observer) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let genesis = genesis(&config.genesis, &mut faults);
        let identity = identity(&config.http, &mut faults);
        keep_private("token", &config.token, &mut faults);
        if let Some(file) = config.index.password_file() {
            keep_private("index.mysql.password_file", file, &mut faults);
        }
        let token = faults.note(
            format_args!("token {}", config.token.display()),
            token(&config.token, &config.organization),
        );
        daemon_secret(&config.vault, &mut faults);
        if let Some(passphrase_file) = &config.keyring.passphrase_file {
            faults.note("keyring.passphrase_file", Passphrase::read(passphrase_file));
        }
        let (Some(genesis), Some(identity), Some(token)) = (genesis, identity, token) else {
            return Err(faults);
        };
        faults.extend(config.follow.too_few(&ValidatorSet::of(&genesis)));
        faults.none_or(Self {
            config,
            genesis,
            identity,
            token,
        })
    }

    /// Runs until SIGTERM or SIGINT (a good end), or until a task ends (never a good one).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run(self, telemetry: Telemetry) -> Result<(), Error> {
        let address = self.config.http.listen;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| Error::Listen { address, source })?;
        let mut terminate = signal(SignalKind::terminate()).map_err(open("signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(open("signals"))?;
        let name = self.config.name.clone();
        let drain_timeout = Duration::from_millis(self.config.http.drain_timeout_ms);
        let shutdown = CancellationToken::new();
        let mut tasks = self.start(listener, telemetry, &shutdown).await?;
        tracing::info!(%name, listen = %address, "observing");
        let end = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            Some(ended) = tasks.join_next() => {
                let (task, reason) = ended.expect("a panic aborts the process before a join can see it");
                Err(Error::Ended { task, reason })
            }
        };
        tracing::info!(%name, "stopping");
        shutdown.cancel();
        let drained = async {
            while let Some(ended) = tasks.join_next().await {
                if ended.is_ok_and(|(task, _)| task == "http") {
                    return;
                }
            }
        };
        if tokio::time::timeout(drain_timeout + STOP_TIMEOUT, drained)
            .await
            .is_err()
        {
            tracing::warn!("http did not end in time");
        }
        tasks.shutdown().await;
        end
    }

    /// Opens the rooms and starts their tasks.
    async fn start(
        self,
        listener: TcpListener,
        telemetry: Telemetry,
        shutdown: &CancellationToken,
    ) -> Result<JoinSet<(&'static str, String)>, Error> {
        let Self {
            config,
            genesis,
            identity,
            token,
        } = self;
        let data_dir = &config.data_dir;
        let incidents = Incidents::open(data_dir).map_err(open("incidents"))?;
        let client = peers_client(&identity, HeaderMap::from_iter([(header::AUTHORIZATION, token)]))?;
        let keyring = Keyring::load(&config.keyring, data_dir).map_err(open("keyring"))?;
        let proofs = Proofs::open(data_dir, &genesis).map_err(open("proofs"))?;
        let vault = Vault::open(&config.vault, data_dir, client.clone()).await;
        let vault = vault.map_err(open("vault"))?;
        let index = Index::open(&config.index, data_dir).await.map_err(open("index"))?;
        let projection = Projection::new(proofs.clone(), vault.clone(), index.clone(), keyring.clone());
        let mending = mend_rows(projection.clone(), incidents.clone());
        let forgotten = Forgotten {
            proofs: proofs.clone(),
            vault: vault.clone(),
            index: index.clone(),
            keyring: keyring.clone(),
            incidents: incidents.clone(),
        };
        let forgetting = Forgetting::new(forgotten, config.organization.clone());
        let rooms = follow::Rooms {
            proofs: proofs.clone(),
            projection: projection.clone(),
            keyring: keyring.clone(),
            incidents: incidents.clone(),
        };
        let member = (config.organization.clone(), Committees::founding(&genesis));
        let follower = Follower::new(&config.follow, member, &client, data_dir.clone(), rooms);
        let readable = query::Rooms {
            states: proofs.states(),
            vault: vault.clone(),
            index: index.clone(),
            keyring,
        };
        let rooms = door::Rooms {
            proofs,
            vault,
            index,
            query: Query::new(&config.query, config.organization.clone(), readable).serving_granted(),
            incidents,
            telemetry: telemetry.clone(),
        };
        let context = door::Context::new(config.http, genesis, config.organization, rooms);
        let mut tasks = JoinSet::new();
        tasks.spawn(named("telemetry", telemetry.keep_up()));
        tasks.spawn(named("projection", projection.run()));
        tasks.spawn(named("rows", mending));
        tasks.spawn(named("erasure", forgetting.run()));
        tasks.spawn(named("follow", follower.run()));
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            let end = door::serve(listener, &identity, context, shutdown).await;
            let reason = end.map_or_else(|error| error.to_string(), |()| "it was told to".to_owned());
            ("http", reason)
        });
        Ok(tasks)
    }
}

/// The header that carries the organisation's token; never printed.
fn token(path: &Path, organization: &OrganizationId) -> Result<HeaderValue, String> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| error.to_string())?);
    let text = text.trim();
    if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
        return Err("not an access token in one line".to_owned());
    }
    // The nodes would take it and show what another organisation may see: not what this observer's keys open.
    if claimed_issuer(text).as_ref() != Some(organization) {
        return Err(format!(
            "its iss is not {organization}: an access token of this organization is needed"
        ));
    }
    let value =
        HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| "not an access token in one line".to_owned());
    value.map(|mut value| {
        value.set_sensitive(true);
        value
    })
}

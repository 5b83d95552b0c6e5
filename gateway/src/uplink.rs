//! Bundles on their way to the fog: submitted to any node, and forgotten only for a receipt that was verified here.
//!
//! One flight per bundle: submit, then wait for the receipt at the same node; whatever goes wrong, the next node. Flights
//! start in the order of the queue, up to `in_flight_max` at a time; all of it starts again from the outbox after a restart.

mod flight;
mod node;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::Arc,
};

use ledger::{genesis::Genesis, proof::ValidatorSet};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle, JoinSet},
};

use self::{
    flight::{Flight, Landing},
    node::Nodes,
};
use crate::{
    outbox::{Final, Outbox, Ticket},
    tls,
};

pub use self::node::NodeState;

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: (8401..=8404).map(|port| format!("https://127.0.0.1:{port}")).collect(),
            certificate: "gateway.crt".into(),
            private_key: "gateway.key".into(),
            ca: "ca.crt".into(),
            in_flight_max: 32,
            connect_timeout_ms: 2_000,
            submit_timeout_ms: 10_000,
            receipt_wait_ms: 10_000,
            final_timeout_ms: 20_000,
            pause_min_ms: 100,
            pause_max_ms: 5_000,
        }
    }
}

/// The network as the gateway knows it: who votes, and a client that talks to its nodes only.
#[derive(Clone, Debug)]
pub struct Network {
    validators: ValidatorSet,
    client: rustls::ClientConfig,
}

impl Config {
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
        if self.in_flight_max == 0 || self.receipt_wait_ms > 30_000 || self.pause_min_ms > self.pause_max_ms {
            let rule = "in_flight_max at least 1, receipt_wait_ms at most 30000, pause_min_ms at most pause_max_ms";
            faults.push(format!("uplink: {rule}"));
        }
        let pinned: HashSet<_> = genesis.validators.iter().map(|v| v.tls).collect();
        let client = tls::client_of_nodes(&self.ca, (&self.certificate, &self.private_key), pinned);
        let client = client.map_err(|fault| faults.push(format!("uplink {fault}")));
        match client {
            Ok(client) if faults.is_empty() => {
                let validators = ValidatorSet { network: genesis.network(), validators: genesis.committee() };
                Ok(Network { validators, client })
            }
            _ => Err(faults),
        }
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
}

impl Uplink {
    /// Starts submitting what the outbox holds.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub fn start(config: &Config, network: Network, outbox: Outbox) -> Result<Self, Error> {
        let nodes = Arc::new(Nodes::connect(config, network.client)?);
        let (announce, in_flight) = watch::channel(0);
        let view = View { in_flight, nodes: Arc::clone(&nodes) };
        let flight = Flight { nodes, outbox, validators: Arc::new(network.validators) };
        let task = tokio::spawn(run(flight, config.in_flight_max, announce));
        Ok(Self { task, view })
    }

    /// What the status shows.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
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

async fn run(flight: Flight, in_flight_max: usize, announce: watch::Sender<usize>) -> Result<(), Error> {
    let mut newest = flight.outbox.newest();
    let mut flights: JoinSet<Landing> = JoinSet::new();
    let mut next = 0;
    loop {
        newest.mark_unchanged();
        let tickets = tickets(&flight.outbox, next, in_flight_max - flights.len()).await?;
        for ticket in tickets {
            next = ticket.order + 1;
            flights.spawn(flight.clone().fly(ticket));
        }
        announce.send_replace(flights.len());
        tokio::select! {
            Some(landed) = flights.join_next() => settle(&flight.outbox, landed, &mut flights).await?,
            changed = newest.changed(), if flights.len() < in_flight_max => {
                if changed.is_err() {
                    return Ok(()); // the outbox has stopped
                }
            }
        }
    }
}

async fn tickets(outbox: &Outbox, from: u64, limit: usize) -> Result<Vec<Ticket>, Error> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let outbox = outbox.clone();
    Ok(tokio::task::spawn_blocking(move || outbox.tickets(from, limit)).await??)
}

/// Takes this landing and all that are ready, so that one commit forgets them together.
async fn settle(outbox: &Outbox, landed: Result<Landing, JoinError>, others: &mut JoinSet<Landing>) -> Result<(), Error> {
    let mut finals: Vec<Final> = Vec::new();
    let mut next = Some(landed);
    while let Some(landed) = next {
        match landed? {
            Landing::Final(done) => finals.push(*done),
            Landing::Refused { order, reason } => outbox.set_aside(order, reason).await,
            Landing::Gone => {}
            Landing::Failed(error) => return Err(error.into()),
        }
        next = others.try_join_next();
    }
    if !finals.is_empty() {
        metrics::counter!("gateway_uplink_bundles_final_total").increment(finals.len() as u64);
        outbox.forget(finals).await;
    }
    Ok(())
}

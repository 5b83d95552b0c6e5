//! The servers of the index and the connections to the one that is used: a bounded number, closed when anything is unclear.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{Executor as _, mysql::MySqlConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Address, addresses};
use crate::index::{
    Config, Error,
    database::{in_time, timed_out},
};

#[derive(Debug)]
struct Shared {
    addresses: Vec<Address>,
    places: Arc<Semaphore>,
    busy_timeout: Duration,
    statement_timeout: Duration,
    // Held for a moment, never across a wait.
    idle: Mutex<Idle>,
    /// Counts up whenever another server is used.
    place: AtomicU64,
}

/// Connections that nobody uses now, all to one server.
#[derive(Debug, Default)]
struct Idle {
    /// Which of the addresses; none is known to work.
    used: Option<usize>,
    connections: Vec<MySqlConnection>,
}

/// The servers. Clones share them.
#[derive(Clone, Debug)]
pub(in super::super) struct Servers(Arc<Shared>);

impl Servers {
    pub(in super::super) fn new(config: &Config) -> Self {
        Self(Arc::new(Shared {
            addresses: addresses(&config.mysql),
            places: Arc::new(Semaphore::new(config.connections_max as usize)),
            busy_timeout: Duration::from_millis(config.busy_timeout_ms),
            statement_timeout: Duration::from_millis(config.mysql.statement_timeout_ms),
            idle: Mutex::default(),
            place: AtomicU64::new(0),
        }))
    }

    pub(in super::super) fn place(&self) -> u64 {
        self.0.place.load(Ordering::Acquire)
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // What it guards is replaced as a whole: a panic cannot leave it half done.
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection: an idle one, or a new one to the server that is used, or to the first that lets this node in.
    pub(in super::super) async fn lease(&self) -> Result<Lease, Error> {
        let place = tokio::time::timeout(self.0.busy_timeout, Arc::clone(&self.0.places).acquire_owned()).await;
        let permit = place
            .map_err(|_| timed_out("all connections are in use"))?
            .expect("the places are never closed");
        let (used, idle) = {
            let mut idle = self.idle();
            (idle.used, idle.connections.pop())
        };
        let connection = match (idle, used) {
            (Some(connection), _) => connection,
            (None, Some(used)) => match self.0.addresses[used].connect().await {
                Ok(connection) => connection,
                Err(_) => self.first().await?,
            },
            (None, None) => self.first().await?,
        };
        Ok(Lease {
            connection: Some(connection),
            place: self.place(),
            servers: self.clone(),
            _permit: permit,
        })
    }

    /// A connection to the first server that answers and can be used; the reason of the first that does not, else.
    async fn first(&self) -> Result<MySqlConnection, Error> {
        let mut why = None;
        for (at, address) in self.0.addresses.iter().enumerate() {
            match address.connect().await {
                Ok(connection) => {
                    let mut idle = self.idle();
                    if idle.used != Some(at) {
                        *idle = Idle {
                            used: Some(at),
                            connections: Vec::new(),
                        };
                        self.0.place.fetch_add(1, Ordering::AcqRel);
                        tracing::info!(server = ?address, "the index is on this server");
                    }
                    return Ok(connection);
                }
                Err(error) => why = Some(why.unwrap_or(error)),
            }
        }
        // When it comes back it is the same one, and its rows need not be counted again.
        self.idle().connections.clear();
        Err(why.unwrap_or_else(|| Error::Unusable("index.mysql.hosts names no server".to_owned())))
    }
}

/// A connection in use. It is given back after all went well; dropped, it is closed, and the server undoes what was not
/// committed: nobody waits for a server that stands still, or goes on where somebody was interrupted.
#[derive(Debug)]
pub(in super::super) struct Lease {
    connection: Option<MySqlConnection>,
    place: u64,
    servers: Servers,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub(in super::super) fn statement_timeout(&self) -> Duration {
        self.servers.0.statement_timeout
    }

    pub(in super::super) fn connection(&mut self) -> Result<&mut MySqlConnection, Error> {
        self.connection
            .as_mut()
            .ok_or_else(|| Error::Unusable("the connection was given back".to_owned()))
    }

    /// A statement that cannot be prepared.
    pub(in super::super) async fn text(&mut self, statement: &'static str) -> Result<(), Error> {
        let limit = self.statement_timeout();
        in_time(limit, self.connection()?.execute(sqlx::raw_sql(statement)))
            .await
            .map(|_| ())
    }

    pub(in super::super) fn give_back(mut self) {
        let mut idle = self.servers.idle();
        if self.place == self.servers.place() {
            idle.connections.extend(self.connection.take());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            // The others were made to the same server: whatever befell this one may have befallen them.
            self.servers.idle().connections.clear();
        }
    }
}

//! The index in MySQL or MariaDB: one database on the first of some servers that answers and takes writes.
//!
//! The node's user has SELECT, INSERT, UPDATE and DELETE on that database; another one makes the tables
//! (`fog-node index migrate`). Each connection is made strict, and looked at before it is used: a server that only reads, or has
//! other tables than this version, is passed over with a sentence that says what to change.

use std::{fmt, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, Row as _,
    migrate::Migrator,
    mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlSslMode},
};
use zeroize::Zeroizing;

mod servers;

use super::{
    Config, Error,
    config::{Host, Mysql},
};
pub(super) use servers::{Lease, Servers};

/// The schema of this version.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/mysql");
/// Statements that a connection keeps prepared, at most.
const STATEMENTS_MAX: usize = 500;
/// A password file has at most this many bytes.
const PASSWORD_BYTES_MAX: usize = 1_024;
/// Nothing is cut off or guessed to make it fit, and `||` joins texts as in SQLite.
const SQL_MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,PIPES_AS_CONCAT'";
/// What the session must be, whatever the server's defaults are.
const SESSION: [&str; 3] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION autocommit = 1",
    "SET SESSION innodb_lock_wait_timeout = 5",
];
/// There is no such table.
const NO_TABLE: u16 = 1146;
/// The user has no right to the table.
const NO_RIGHT: u16 = 1142;
/// Neither user, password nor right to the database; too many connections are no fault of ours.
const REFUSED: [u16; 3] = [1044, 1045, 1049];

/// Where and as whom connections are made. Its password is read when one is.
#[derive(Clone)]
struct Address {
    options: MySqlConnectOptions,
    config: Mysql,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Address {
    fn of(config: &Mysql, server: Option<&Host>) -> Self {
        let options = MySqlConnectOptions::new()
            .username(&config.user)
            .database(&config.database)
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .statement_cache_capacity(STATEMENTS_MAX)
            .disable_statement_logging();
        let options = match (server, &config.socket) {
            (Some(server), _) => options.host(&server.name).port(server.port),
            (None, Some(socket)) => options.socket(socket),
            (None, None) => options,
        };
        let options = match (&config.ca_file, server) {
            (Some(ca), Some(_)) => options.ssl_mode(MySqlSslMode::VerifyIdentity).ssl_ca(ca),
            // Within this machine: encrypted if the server can, and nothing depends on it.
            (None, Some(_)) => options.ssl_mode(MySqlSslMode::Preferred),
            (_, None) => options.ssl_mode(MySqlSslMode::Disabled),
        };
        Self {
            options,
            config: config.clone(),
        }
    }

    /// As it stands in the configuration.
    fn name(&self) -> String {
        match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }

    /// A connection of the node, looked at.
    async fn connect(&self) -> Result<MySqlConnection, Error> {
        let mut connection = self.log_in().await?;
        let session = connection
            .fetch_one("SELECT CAST(@@SESSION.sql_mode AS CHAR) AS mode, CAST(@@GLOBAL.read_only AS CHAR) AS read_only")
            .await?;
        if !session.try_get::<String, _>("mode")?.contains("STRICT_ALL_TABLES") {
            return Err(Error::Unusable("the server does not become strict".to_owned()));
        }
        if !["0", "OFF"].contains(&session.try_get::<String, _>("read_only")?.as_str()) {
            return Err(Error::Unusable(
                "the server takes no writes (read_only): it may be a replica; name the one that takes them first"
                    .to_owned(),
            ));
        }
        is_migrated(&mut connection, &self.config).await?;
        Ok(connection)
    }

    /// A connection that is strict, in time.
    async fn log_in(&self) -> Result<MySqlConnection, Error> {
        let options = match &self.config.password_file {
            None => self.options.clone(),
            Some(file) => {
                let read = std::fs::read_to_string(file).map(Zeroizing::new);
                let password = read.map_err(|error| {
                    Error::Unusable(format!("index.mysql.password_file {}: {error}", file.display()))
                })?;
                let password = password.trim_end_matches(['\r', '\n']);
                if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
                    return Err(Error::Unusable(format!(
                        "index.mysql.password_file {} is not a password in one line",
                        file.display()
                    )));
                }
                self.options.clone().password(password)
            }
        };
        let connecting = async {
            let mut connection = options.connect().await.map_err(|error| self.refused(error))?;
            connection.execute(SQL_MODE).await?;
            for statement in SESSION {
                connection.execute(statement).await?;
            }
            Ok(connection)
        };
        let limit = Duration::from_millis(self.config.connect_timeout_ms);
        let connected = tokio::time::timeout(limit, connecting).await;
        connected.unwrap_or_else(|_| Err(super::database::timed_out("no connection in time")))
    }

    fn refused(&self, error: sqlx::Error) -> Error {
        let Mysql { user, database, .. } = &self.config;
        match number(&error) {
            Some(number) if REFUSED.contains(&number) => Error::Unusable(format!(
                "the server lets {user} not into {database}: wrong password, or GRANT SELECT, INSERT, UPDATE, DELETE ON \
                 `{database}`.* TO this user"
            )),
            _ => error.into(),
        }
    }
}

fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    error
        .try_downcast_ref::<MySqlDatabaseError>()
        .map(MySqlDatabaseError::number)
}

/// Whether the tables are this version's.
async fn is_migrated(connection: &mut MySqlConnection, config: &Mysql) -> Result<(), Error> {
    let applied = connection
        .fetch_all("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
        .await;
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            return Err(match number(&error) {
                Some(NO_TABLE) => unmigrated(config),
                Some(NO_RIGHT) => Error::Unusable(format!(
                    "{} may not read there: GRANT SELECT, INSERT, UPDATE, DELETE ON `{}`.* TO this user",
                    config.user, config.database
                )),
                _ => error.into(),
            });
        }
    };
    let mut expected = MIGRATIONS.iter();
    for row in applied {
        let (version, success): (i64, bool) = (row.try_get("version")?, row.try_get("success")?);
        let checksum: Vec<u8> = row.try_get("checksum")?;
        let is_ours = expected
            .next()
            .is_some_and(|ours| ours.version == version && *ours.checksum == *checksum);
        if !is_ours || !success {
            return Err(Error::Unusable(format!(
                "the tables in {} are of another version, or half made: empty the database and run `fog-node index migrate`",
                config.database
            )));
        }
    }
    expected.next().map_or(Ok(()), |_| Err(unmigrated(config)))
}

fn unmigrated(config: &Mysql) -> Error {
    Error::Unusable(format!(
        "the tables in {database} are not those of this version: run `fog-node index migrate --config FILE --user ADMIN \
         --password-file FILE` with a user that has GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON \
         `{database}`.*",
        database = config.database
    ))
}

/// Makes this version's tables on each server that takes writes; what was done where.
pub(super) async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for address in addresses(&config.mysql) {
        let mut connection = address.log_in().await?;
        MIGRATIONS.run_direct(None, &mut connection, false).await?;
        is_migrated(&mut connection, &config.mysql).await?;
        done.push(format!("{}: the tables are those of this version", address.name()));
        // It was the last word to that server.
        let _closed = connection.close().await;
    }
    Ok(done)
}

/// The servers in their order, or the socket.
fn addresses(config: &Mysql) -> Vec<Address> {
    let servers = config.servers();
    if servers.is_empty() {
        return vec![Address::of(config, None)];
    }
    servers.iter().map(|server| Address::of(config, Some(server))).collect()
}

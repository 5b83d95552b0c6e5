//! The configuration file of each process, and how it is run.

use std::path::{Path, PathBuf};

use fog_node::{
    index::Mysql,
    keyring::{Holding, Keyring, Passphrase},
    vault::kubo::Api,
};
use record::bundle::{Category, SubjectSecret};
use serde_json::{Value as Json, json};

use super::{DESK, GATEWAY, HOME_USER, Network, NodePlan, mosquitto::CLAIMS_USER, pretty};
use crate::{
    children::Program,
    config::Broker,
    fault::Fault,
    household::{Device, Person},
    identities::{Password, TlsIdentity},
};

/// Sessions that the broker keeps besides those of the devices: each client that publishes by hand leaves one behind.
const SESSIONS_BESIDES: usize = 1_000;
/// Bundles that the gateway has under way at a time: one for so many devices. What waits for the next block waits together,
/// so that more bundles in a block, and not more blocks, carry what more devices measure.
const DEVICES_PER_FLIGHT: usize = 8;
/// As many as the gateway would have by itself.
const IN_FLIGHT_MIN: usize = 64;
/// As many as four nodes admit at a time from one gateway.
const IN_FLIGHT_MAX: usize = 256;

/// Whoever wants a scrub more often than this, in seconds, waits for what it finds, and has it read faster.
const SCRUB_UNHURRIED_S: u64 = 60;
/// So many times as fast.
const SCRUB_HURRIED: u64 = 8;

/// How fast a scrub that comes every so many seconds reads.
fn scrub_bytes_per_s_max(scrub_s: u64) -> u64 {
    let unhurried = fog_node::recovery::Config::default().scrub_bytes_per_s_max;
    if scrub_s < SCRUB_UNHURRIED_S {
        unhurried * SCRUB_HURRIED
    } else {
        unhurried
    }
}

/// Programs of this machine that keep something for fog nodes. What is not named, the nodes keep themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stores<'a> {
    /// IPFS daemons for payloads: the first is the first node's, and so on.
    pub daemons: &'a [Api],
    /// A database server for the first node's index.
    pub mysql: Option<&'a Mysql>,
}

/// Where a node keeps its index.
fn index(mysql: Option<&Mysql>) -> Json {
    match mysql {
        None => json!({"driver": "sqlite"}),
        Some(mysql) => json!({"driver": "mysql", "mysql": mysql}),
    }
}

/// Where a node keeps its payloads.
fn vault(daemon: Option<&Api>, exchange: &Json) -> Json {
    match daemon {
        None => json!({"driver": "embedded", "exchange": exchange}),
        Some(api) => {
            // It shares the machine with everything else, and is late with each payload while many come.
            let kubo = json!({"api": api, "read_timeout_ms": 15_000, "write_timeout_ms": 30_000});
            json!({"driver": "kubo", "kubo": kubo, "exchange": exchange})
        }
    }
}

impl Network {
    /// Seals each node's keyring, writes its configuration, and says how to run it. Each reads all of its disk again every
    /// `scrub_s` seconds; where else than in their folders they keep things `stores` says.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn node_programs(&self, scrub_s: u64, stores: Stores<'_>) -> Result<Vec<Program>, Fault> {
        (0..)
            .zip(&self.nodes)
            .map(|(i, node)| self.node_program((i, node), scrub_s, stores))
            .collect()
    }

    fn node_program(
        &self,
        (place, node): (u16, &NodePlan),
        scrub_s: u64,
        stores: Stores<'_>,
    ) -> Result<Program, Fault> {
        let dir = Path::new("nodes").join(&node.name);
        let people = if place == 0 {
            self.household.people.as_slice()
        } else {
            &[]
        };
        let passphrase = Password::create(&self.folder, &dir.join("keyring.pass").to_string_lossy())?;
        self.seal_keyring(&node.data_dir, &passphrase, people)?;
        fog_node::consensus::declare_unvoted(&node.data_dir).map_err(Fault::file(&node.data_dir))?;
        let peers = self.consensus_peers();
        let others: Vec<_> = self
            .nodes
            .iter()
            .filter(|peer| peer.name != node.name)
            .map(|peer| &peer.url)
            .collect();
        let desk = match place {
            0 => json!({"author": DESK, "key": self.desk.key_file}),
            _ => json!({}),
        };
        let config = json!({
            "name": node.name,
            "organization": node.name,
            "data_dir": node.data_dir,
            "genesis": self.genesis_file,
            "key": node.key_file,
            "http": {
                "listen": self.ports.node_http(place),
                "public_url": node.url,
                "certificate": node.tls.certificate,
                "private_key": node.tls.private_key,
                "ca": self.ca_file,
            },
            "consensus": {"listen": self.ports.node_consensus(place), "peers": peers},
            "vault": vault(stores.daemons.get(usize::from(place)), &json!({"peers": others})),
            "index": index(stores.mysql.filter(|_| place == 0)),
            "keyring": {"passphrase_file": passphrase.file},
            "documents": {"desk": desk},
            "recovery": {"scrub_every_ms": scrub_s * 1_000, "scrub_bytes_per_s_max": scrub_bytes_per_s_max(scrub_s)},
        });
        let config = self.folder.write_toml(dir.join("config.toml"), &config)?;
        let program = self.program("fog-node", &node.name, config)?;
        Ok(match self.ports.node_host(place) {
            Some(host) => program.within(&host.namespace),
            None => program,
        })
    }

    /// Where the founders reach each other to vote.
    pub(super) fn consensus_peers(&self) -> Vec<Json> {
        let peer =
            |(i, peer): (u16, &NodePlan)| json!({"key": peer.key.public(), "address": self.ports.node_consensus(i)});
        (0..).zip(&self.nodes).map(peer).collect()
    }

    /// Makes a data folder with a keyring that opens the records of some people.
    pub(super) fn seal_keyring(&self, data_dir: &Path, passphrase: &Password, people: &[Person]) -> Result<(), Fault> {
        let holdings = |p: &Person| {
            let pairs = [(p.secret.clone(), p.key.clone()), p.clinical.clone()];
            let patient = p.patient.clone();
            pairs.map(|(secret, key)| Holding {
                key,
                secret,
                patient: patient.clone(),
            })
        };
        std::fs::create_dir_all(data_dir).map_err(Fault::file(data_dir))?;
        let keyring = data_dir.join("keyring.sealed");
        Passphrase::read(&passphrase.file)
            .and_then(|phrase| Keyring::create(&keyring, &phrase, people.iter().flat_map(holdings).collect()))
            .map_err(Fault::identity("a keyring"))?;
        Ok(())
    }

    /// Writes the gateway's users, enrolments and configuration, and says how to run it.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn gateway_program(&self, broker: Broker) -> Result<Program, Fault> {
        let gateway = &self.gateway;
        let devices = &self.household.devices;
        let home = json!({"user": HOME_USER, "password_sha256": gateway.home_password.sha256, "device": null});
        let user = |d: &Device| json!({"user": d.id, "password_sha256": d.password.sha256, "device": d.id});
        let users: Vec<_> = std::iter::once(home).chain(devices.iter().map(user)).collect();
        let enrol = |d: &Device| json!({"device": d.id, "key": d.key, "subject": self.household.person_of(d).key});
        let enrolments: Vec<_> = devices.iter().map(enrol).collect();
        // Whoever has this key can read what was refused, and why; the gateway itself cannot.
        let (quarantine_secret, quarantine) =
            SubjectSecret::generate(Category::Vitals, 1).map_err(Fault::identity("the quarantine key"))?;
        self.folder
            .write("gateway/quarantine.key", hex::encode(quarantine_secret.secret_bytes()))?;
        let config = json!({
            "gateway": GATEWAY,
            "data_dir": gateway.data_dir,
            "genesis": self.genesis_file,
            "key": gateway.key_file,
            "mqtt": match broker {
                Broker::Embedded => json!({"driver": "embedded", "broker": {
                    "listen": self.ports.mqtt(),
                    "certificate": gateway.tls.certificate,
                    "private_key": gateway.tls.private_key,
                    "client_ca": self.mqtt.clients_ca_file,
                    "users": self.folder.write("gateway/users.json", pretty(&users))?,
                    "sessions_max": devices.len() + SESSIONS_BESIDES,
                }}),
                Broker::Mosquitto => json!({"driver": "external", "subscriber": {
                    "address": self.ports.mqtt_of_gateway().to_string(),
                    "ca": self.ca_file,
                    "certificate": self.mqtt.gateway.certificate,
                    "private_key": self.mqtt.gateway.private_key,
                    "user": "",
                    "client_id": format!("gateway.{GATEWAY}"),
                    "claims": {
                        "url": format!("mqtts://{}", self.ports.mqtt_of_claims()),
                        "user": CLAIMS_USER,
                        "password_file": self.mqtt.claims.file,
                    },
                }}),
            },
            "enrolment": {"file": self.folder.write("gateway/enrolment.json", pretty(&enrolments))?},
            "uplink": {
                "nodes": self.nodes.iter().map(|node| &node.url).collect::<Vec<_>>(),
                "certificate": gateway.tls.certificate,
                "private_key": gateway.tls.private_key,
                "ca": self.ca_file,
                "in_flight_max": (devices.len() / DEVICES_PER_FLIGHT).clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX),
            },
            "quarantine": {"key": hex::encode(&quarantine.public)},
            "http": {"listen": self.ports.gateway_http()},
        });
        let config = self.folder.write_toml("gateway/config.toml", &config)?;
        self.program("gateway", "gateway", config)
    }

    /// Writes the configuration of the fleet, the first so many devices of the household, and says how to run it.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn fleet_program(
        &self,
        fleet: (Broker, usize),
        recordings: Option<&Path>,
        speed: f64,
    ) -> Result<Program, Fault> {
        let mut habits = json!({ "speed": speed });
        if let Some(recordings) = recordings {
            habits["recordings"] = json!(recordings);
        }
        self.fleet_program_with(fleet, habits)
    }

    /// The same, with these settings of `firmware-sim` besides where everything is.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn fleet_program_with(&self, (broker, devices): (Broker, usize), mut config: Json) -> Result<Program, Fault> {
        let device = |(d, tls): (&Device, &TlsIdentity)| {
            let mut entry =
                json!({"id": d.id, "kind": d.kind, "key_file": d.key_file, "user": d.id, "recording": d.recording});
            match broker {
                Broker::Embedded => entry["password_file"] = json!(d.password.file),
                Broker::Mosquitto => {
                    entry["certificate"] = json!(tls.certificate);
                    entry["private_key"] = json!(tls.private_key);
                }
            }
            entry
        };
        let devices: Vec<_> = self
            .household
            .devices
            .iter()
            .zip(&self.mqtt.devices)
            .take(devices)
            .map(device)
            .collect();
        let receipt = match broker {
            Broker::Embedded => "puback",
            Broker::Mosquitto => "ack",
        };
        // The operator of that broker is not to read what the devices measure; its gateway takes nothing else.
        if broker == Broker::Mosquitto {
            config["seal"] = json!({"network": self.id(), "reading_key": self.gateway.reading_key.public()});
        }
        config["gateway"] = json!(GATEWAY);
        config["data_dir"] = json!(self.fleet_data_dir());
        config["devices"] = json!(self.folder.write("fleet/devices.json", pretty(&devices))?);
        config["mqtt"]["address"] = json!(self.ports.mqtt());
        config["mqtt"]["ca"] = json!(self.ca_file);
        config["mqtt"]["receipt"] = json!(receipt);
        std::fs::create_dir_all(self.fleet_data_dir()).map_err(Fault::file(self.fleet_data_dir()))?;
        let config = self.folder.write_toml("fleet/config.toml", &config)?;
        self.program("firmware-sim", "fleet", config)
    }

    /// A program that is this very executable under another name.
    fn program(&self, command: &str, name: &str, config: PathBuf) -> Result<Program, Fault> {
        let executable = self.folder.path(Path::new("bin").join(command));
        if !executable.exists() {
            let bin = self.folder.path("bin");
            std::fs::create_dir_all(&bin).map_err(Fault::file(&bin))?;
            let itself = std::env::current_exe().map_err(Fault::file("the running executable"))?;
            // A second name of the same file outlives a new build of it, which a symbolic link does not; but it has to
            // be on the same file system.
            std::fs::hard_link(&itself, &executable)
                .or_else(|_| std::os::unix::fs::symlink(&itself, &executable))
                .map_err(Fault::file(&executable))?;
        }
        let log = self.folder.log(name)?;
        Ok(Program {
            name: name.to_owned(),
            executable,
            arguments: vec!["run".into(), "--config".into(), config],
            log,
        })
    }
}

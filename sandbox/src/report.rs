//! The report: where everything is while a run lasts, what came of it at the end. Its keys are fixed (`docs/ARCHITECTURE.md`).

use std::path::PathBuf;

use ledger::genesis::Role;
use record::{
    canonical::Digest,
    ids::{DeviceId, NetworkId, OrganizationId, SubjectId},
};
use serde::{Deserialize, Serialize};

/// Everything about a run. Paths are absolute, counters count readings, memory is the highest ever used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Every process runs, everything is enrolled, devices publish.
    pub ready: bool,
    /// Whether every promise held; absent until the end of a run with `--for`.
    pub passed: Option<bool>,
    /// The promises that did not hold, each in a sentence.
    pub failures: Vec<String>,
    /// The network's name.
    pub network: NetworkId,
    /// The folder that holds everything.
    pub data_dir: PathBuf,
    /// What `fog-node verify-receipt --validators` reads.
    pub validators_file: PathBuf,
    /// Process id of the sandbox.
    pub pid: u32,
    /// Readings published by the fleet, however often each was sent, and by hand.
    pub published: u64,
    /// Readings acknowledged to their publisher.
    pub acknowledged: u64,
    /// Readings on the chain.
    #[serde(rename = "final")]
    pub final_readings: u64,
    /// Of these, published by somebody else than the fleet.
    pub by_hand: u64,
    /// Readings on the chain of which the fleet does not know that they were acknowledged.
    pub unconfirmed: u64,
    /// Readings on the chain or in the hospital's answers more than once.
    pub duplicates: u64,
    /// Acknowledged readings that are missing.
    pub gaps: u64,
    /// Messages that were refused and kept with the reason.
    pub quarantined: u64,
    /// How long readings took.
    pub latency_ms: Latencies,
    /// The fog nodes.
    pub nodes: Vec<NodeReport>,
    /// Observers that nobody has started yet: of the custodian, and of the stranger.
    pub observers: Vec<PreparedReport>,
    /// A node of the last member that is none of the founders; nobody has started it, or voted for it.
    pub newcomer: PreparedReport,
    /// The gateway.
    pub gateway: GatewayReport,
    /// The broker, if it is a process of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerReport>,
    /// The fleet of devices.
    pub fleet: FleetReport,
    /// The custodian of all patients, and a client of it.
    pub hospital: HospitalReport,
    /// A client of another member, without a grant.
    pub stranger: StrangerReport,
    /// Who is measured: synthetic people.
    pub patients: Vec<PatientReport>,
    /// What measures them.
    pub devices: Vec<DeviceReport>,
}

/// How long readings took, from the device's publishing on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Until the device had its PUBACK: the reading is durable in the gateway.
    pub publish_to_puback: Percentiles,
    /// Until the gateway had checked the receipt: the reading is final.
    pub publish_to_final: Percentiles,
    /// Until the hospital's node had indexed it: a query returns it.
    pub publish_to_visible: Percentiles,
}

/// Milliseconds that half, and 99 of 100, took at most; absent if nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them.
    pub p50: Option<f64>,
    /// 99 of 100.
    pub p99: Option<f64>,
}

/// A fog node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub http: String,
    /// Its height.
    pub height: Option<u64>,
    /// Digest of its last block.
    pub head: Option<Digest>,
    /// Digest of its state after that block.
    pub state_digest: Option<Digest>,
    /// What it keeps.
    pub data_dir: PathBuf,
    /// The process.
    #[serde(flatten)]
    pub process: ProcessReport,
}

/// A process that is prepared, and that nobody has started: an observer (`fog-node observe`; its keyring has the first
/// patient's key) or the newcomer (`fog-node run`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreparedReport {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Where it answers once it runs.
    pub http: String,
    /// Its configuration.
    pub config_file: PathBuf,
    /// What it keeps.
    pub data_dir: PathBuf,
}

/// A process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// Its highest memory use, over all its starts.
    pub rss_bytes: Option<u64>,
    /// How often it died and was started again.
    pub restarts: u64,
    /// How it was started.
    pub command: Vec<String>,
    /// What it printed.
    pub log: PathBuf,
}

/// The gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayReport {
    /// Where devices publish: `mqtts://..`.
    pub mqtt: String,
    /// A user that may publish for each device; of the embedded broker alone.
    pub mqtt_user: String,
    /// The file with its password, without a line end.
    pub mqtt_password_file: PathBuf,
    /// The certificate authority of its certificate.
    pub ca_file: PathBuf,
    /// What devices seal to, 64 hexadecimal digits.
    pub reading_key: String,
    /// Health, metrics, status.
    pub http: String,
    /// What it keeps.
    pub data_dir: PathBuf,
    /// The process.
    #[serde(flatten)]
    pub process: ProcessReport,
}

/// The broker as a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrokerReport {
    /// What it keeps.
    pub data_dir: PathBuf,
    /// The process.
    #[serde(flatten)]
    pub process: ProcessReport,
}

/// The fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FleetReport {
    /// Where it keeps its status and the list of what was acknowledged.
    pub data_dir: PathBuf,
    /// The process.
    #[serde(flatten)]
    pub process: ProcessReport,
}

/// The custodian.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HospitalReport {
    /// Its id.
    pub organization: OrganizationId,
    /// What it is.
    pub role: Role,
    /// A program of it.
    pub client_id: String,
    /// The key that signs its tokens.
    pub private_key_file: PathBuf,
    /// A bearer token.
    pub token: String,
    /// Base of its FHIR interface.
    pub fhir: String,
    /// The certificate authority of that address.
    pub ca_file: PathBuf,
}

/// A member without a grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StrangerReport {
    /// Its id.
    pub organization: OrganizationId,
    /// A bearer token.
    pub token: String,
}

/// A synthetic person.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatientReport {
    /// FHIR logical id.
    pub id: SubjectId,
    /// The name people read.
    pub name: String,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its id.
    pub id: DeviceId,
    /// Whom it measures.
    pub patient: SubjectId,
    /// What it replays.
    pub recording: String,
    /// PEM file of the key with which it signs.
    pub key_file: PathBuf,
    /// Its MQTT user.
    pub user: String,
    /// The file with its password.
    pub password_file: PathBuf,
    /// Its certificate at the broker; one of the same name belongs to the client id of the same name only.
    pub certificate_file: PathBuf,
    /// The private key of its certificate.
    pub private_key_file: PathBuf,
    /// Where it publishes.
    pub topic: String,
}

//! The founding of a network: members, validators, genesis, certificates; everything is on disk before anything runs.

mod mosquitto;
mod newcomer;
mod observers;
mod programs;

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use ledger::{
    genesis::{Genesis, Organization, Role, Validator},
    handover::Handovers,
    policy::ValidityPolicy,
    transaction::GatewayEnrolment,
};
use record::{
    ids::{GatewayId, NetworkId, OrganizationId},
    signature::SigningKey,
    transit::ReadingKey,
};

use crate::{
    client::Callers,
    fault::Fault,
    folder::Folder,
    household::Household,
    identities::{Authority, Password, TlsIdentity, signing_key},
    ports::Ports,
};

pub use mosquitto::{MqttPlan, obstacle as mosquitto_obstacle};
pub use newcomer::NewcomerPlan;
pub use observers::ObserverPlan;
pub use programs::Stores;

/// The gateway's id, part of every topic.
pub const GATEWAY: &str = "home-1";
/// The MQTT user that may publish for every device of the home.
pub const HOME_USER: &str = "home";

/// The name under which the custodian's desk is enrolled.
pub const DESK: &str = "desk-1";

/// Observers that are prepared: of the first two members.
const OBSERVERS: u16 = 2;

/// A member of the network, with the key only it has.
#[derive(Debug)]
pub struct Member {
    /// As the genesis names it.
    pub organization: Organization,
    /// Its private key.
    pub key: SigningKey,
    /// PEM file of that key.
    pub key_file: PathBuf,
}

impl Member {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &OrganizationId {
        &self.organization.id
    }

    /// The name of its program that reads.
    #[must_use]
    pub fn client_id(&self) -> String {
        format!("{}-client", self.organization.id)
    }
}

/// A fog node before it is started.
#[derive(Debug)]
pub struct NodePlan {
    /// Its name, which is its organisation's.
    pub name: String,
    /// Where it answers.
    pub url: String,
    /// What it keeps.
    pub data_dir: PathBuf,
    /// Its TLS identity.
    pub tls: TlsIdentity,
    key: SigningKey,
    key_file: PathBuf,
}

/// Who commits to the documents that are handed in at the custodian's node.
#[derive(Debug)]
pub struct DeskPlan {
    /// What the custodian signs to enrol it.
    pub enrolment: GatewayEnrolment,
    key_file: PathBuf,
}

/// The gateway before it is started.
#[derive(Debug)]
pub struct GatewayPlan {
    /// What the custodian signs to enrol it.
    pub enrolment: GatewayEnrolment,
    /// What it keeps.
    pub data_dir: PathBuf,
    /// The password of [`HOME_USER`].
    pub home_password: Password,
    /// Its TLS identity.
    pub tls: TlsIdentity,
    /// The key it signs commitments with.
    pub key: SigningKey,
    /// What devices seal to.
    pub reading_key: ReadingKey,
    key_file: PathBuf,
}

/// A founded network: everything is on disk, nothing runs yet.
#[derive(Debug)]
pub struct Network {
    /// Its folder.
    pub folder: Folder,
    /// Its ports.
    pub ports: Ports,
    /// The founding document.
    pub genesis: Genesis,
    /// Its members; the first is the custodian of all patients and operates the gateway, the second is a stranger to them.
    pub members: Vec<Member>,
    /// Its fog nodes, in the order of the members.
    pub nodes: Vec<NodePlan>,
    /// Observers that nobody has started: of the custodian and of the stranger.
    pub observers: Vec<ObserverPlan>,
    /// A node of the last founder, for which the members would have to vote.
    pub newcomer: NewcomerPlan,
    /// Its gateway.
    pub gateway: GatewayPlan,
    /// The custodian's desk.
    pub desk: DeskPlan,
    /// Who has which certificate at the broker.
    pub mqtt: MqttPlan,
    /// Patients and devices.
    pub household: Household,
    /// PEM file of the certificate authority.
    pub ca_file: PathBuf,
    /// What `--validators` reads.
    pub validators_file: PathBuf,
    /// HTTP clients that trust the authority.
    pub callers: Callers,
    genesis_file: PathBuf,
}

impl Network {
    /// Makes keys and certificates anew and founds a network of so many nodes, with epochs of so many blocks, for a household in
    /// a folder.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn found(
        folder: Folder,
        ports: Ports,
        (nodes, epoch_blocks): (u16, u64),
        household: Household,
    ) -> Result<Self, Fault> {
        let authority = Authority::new()?;
        let members: Vec<_> = (0..nodes.max(4))
            .map(|i| member(&folder, i))
            .collect::<Result<_, _>>()?;
        let nodes: Vec<_> = (0..nodes)
            .map(|i| node(&folder, &authority, members[usize::from(i)].id(), (&ports, i)))
            .collect::<Result<_, _>>()?;
        let observers = (0..OBSERVERS).zip(&members).map(|(i, member)| {
            let port = ports.observer_http(i).port();
            ObserverPlan::of(&folder, &authority, member, port)
        });
        let observers = observers.collect::<Result<_, _>>()?;
        let newcomer = NewcomerPlan::of(&folder, &authority, members.last().expect("four at least"), &ports)?;
        let genesis = genesis(&members, &nodes, epoch_blocks);
        let genesis_file = folder.write("genesis.json", pretty(&genesis))?;
        let validators = Handovers::none(&genesis);
        Ok(Self {
            ports,
            gateway: gateway(&folder, &authority, genesis.network())?,
            desk: desk(&folder, &nodes[0])?,
            mqtt: MqttPlan::of(&folder, &authority, &household)?,
            household,
            ca_file: folder.write("ca.crt", authority.pem())?,
            validators_file: folder.write("validators.json", pretty(&validators))?,
            callers: Callers::trusting(authority.pem())?,
            folder,
            genesis,
            members,
            nodes,
            observers,
            newcomer,
            genesis_file,
        })
    }

    /// The member that keeps the patients' records.
    #[must_use]
    pub fn custodian(&self) -> &Member {
        &self.members[0]
    }

    /// A member that nobody granted anything.
    #[must_use]
    pub fn stranger(&self) -> &Member {
        &self.members[1]
    }

    /// The network's name.
    #[must_use]
    pub fn id(&self) -> NetworkId {
        self.genesis.network()
    }

    /// Base of the gateway's own HTTP interface.
    #[must_use]
    pub fn gateway_url(&self) -> String {
        format!("http://{}", self.ports.gateway_http())
    }

    /// Where the fleet keeps its status and what was acknowledged to it.
    #[must_use]
    pub fn fleet_data_dir(&self) -> PathBuf {
        self.folder.path("fleet/data")
    }
}

fn member(folder: &Folder, index: u16) -> Result<Member, Fault> {
    let (kind, role) = match index {
        2 => ("insurer", Role::Payer),
        3 => ("supplier", Role::Supplier),
        _ => ("hospital", Role::Provider),
    };
    let letter = char::from(b'a' + u8::try_from(index).expect("at most 26 nodes were asked for"));
    let id = format!("{kind}-{letter}");
    let (key, key_file) = signing_key(folder, &format!("organizations/{id}.pem"))?;
    let name = format!("{}{} {}", kind[..1].to_uppercase(), &kind[1..], letter.to_uppercase());
    let id = id.parse().expect("a kind and a letter are a good name");
    Ok(Member {
        organization: Organization {
            id,
            name,
            role,
            key: key.public(),
        },
        key,
        key_file,
    })
}

fn node(
    folder: &Folder,
    authority: &Authority,
    id: &OrganizationId,
    (ports, index): (&Ports, u16),
) -> Result<NodePlan, Fault> {
    let (key, key_file) = signing_key(folder, &format!("nodes/{id}/validator.pem"))?;
    Ok(NodePlan {
        name: id.to_string(),
        url: format!("https://{}", ports.node_http(index)),
        data_dir: folder.path(format!("nodes/{id}/data")),
        tls: authority.issue(folder, &format!("nodes/{id}/node"), id.as_str(), ports.node_host(index))?,
        key,
        key_file,
    })
}

/// It connects to nobody, so it has no certificate but that of its node.
fn desk(folder: &Folder, node: &NodePlan) -> Result<DeskPlan, Fault> {
    let (key, key_file) = signing_key(folder, &format!("nodes/{}/desk.pem", node.name))?;
    let enrolment = GatewayEnrolment {
        gateway: DESK.parse().expect("a good name"),
        key: key.public(),
        tls: node.tls.pin,
    };
    Ok(DeskPlan { enrolment, key_file })
}

fn gateway(folder: &Folder, authority: &Authority, network: NetworkId) -> Result<GatewayPlan, Fault> {
    let id: GatewayId = GATEWAY.parse().expect("a good name");
    let (key, key_file) = signing_key(folder, "gateway/gateway.pem")?;
    let tls = authority.issue(folder, "gateway/gateway", GATEWAY, None)?;
    let data_dir = folder.path("gateway/data");
    std::fs::create_dir_all(&data_dir).map_err(Fault::file(&data_dir))?;
    // It would make one by itself; the devices have to know it before it runs.
    let made_ms = i64::try_from(founded_ms()).expect("milliseconds since 1970");
    let keys = gateway::transit::open(&data_dir, (network, &id), made_ms).map_err(Fault::identity("a reading key"))?;
    Ok(GatewayPlan {
        reading_key: keys.current().clone(),
        enrolment: GatewayEnrolment {
            gateway: id,
            key: key.public(),
            tls: tls.pin,
        },
        data_dir,
        home_password: Password::create(folder, "home.password")?,
        tls,
        key,
        key_file,
    })
}

fn genesis(members: &[Member], nodes: &[NodePlan], epoch_blocks: u64) -> Genesis {
    Genesis {
        name: "vitalfog sandbox".to_owned(),
        founded_ms: founded_ms(),
        organizations: members.iter().map(|m| m.organization.clone()).collect(),
        validators: members
            .iter()
            .zip(nodes)
            .map(|(m, n)| Validator {
                organization: m.id().clone(),
                key: n.key.public(),
                tls: n.tls.pin,
                address: None,
            })
            .collect(),
        policy: ValidityPolicy {
            epoch_blocks,
            ..ValidityPolicy::default()
        },
    }
}

fn founded_ms() -> u64 {
    let founded = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(founded.as_millis()).expect("milliseconds since 1970 fit for 500 million years")
}

fn pretty(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("our documents have string keys")
}

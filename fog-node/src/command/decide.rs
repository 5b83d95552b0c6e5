//! What an organisation decides from the command line: voices for changes of the members, and about its gateways and devices.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use ledger::{
    committee::Change,
    device::OVERLAP_MS_MAX,
    transaction::{Action, DeviceEnrolment, Erasure},
};
use record::{
    ids::{DeviceId, GatewayId, KeyId, OrganizationId},
    signature::{PublicKey, SigningKey},
};

use super::read;
use crate::{
    config::Faults,
    decision::Desk,
    edge::{self, Known},
    members,
    node::{Node, keep_private},
};

/// Bytes of a file that says who is to be a member or to vote, or of a private key, at most.
const SMALL_FILE_BYTES_MAX: usize = 65_536;
/// Bytes of a list of devices' requests, at most: some ten thousand.
const REQUESTS_BYTES_MAX: usize = 4 << 20;
const DAY_MS: u64 = 86_400_000;

/// A change of the members.
#[derive(Debug, Subcommand)]
pub(super) enum For {
    /// An organisation becomes a member.
    Admit {
        /// Its entry as in the genesis: id, name, role and key, JSON.
        file: PathBuf,
    },
    /// A member without a validator leaves.
    Dismiss {
        /// Its id.
        organization: OrganizationId,
    },
    /// A node gets a vote.
    Seat {
        /// What `fog-node seat` printed there, JSON.
        file: PathBuf,
    },
    /// A node loses its vote.
    Unseat {
        /// Its validator key.
        key: PublicKey,
    },
}

impl For {
    fn change(self) -> anyhow::Result<Change> {
        Ok(match self {
            Self::Admit { file } => Change::Admit(serde_json::from_str(&read(&file, SMALL_FILE_BYTES_MAX)?)?),
            Self::Dismiss { organization } => Change::Dismiss(organization),
            Self::Seat { file } => Change::Seat(serde_json::from_str(&read(&file, SMALL_FILE_BYTES_MAX)?)?),
            Self::Unseat { key } => Change::Unseat(key),
        })
    }
}

/// A decision about the organisation's own gateways and devices.
#[derive(Debug, Subcommand)]
pub(super) enum Edge {
    /// Enrols the devices that asked for it at a gateway.
    Approve {
        /// What `gateway claim requests` printed there, JSON.
        file: PathBuf,
        /// A device that is enrolled with another key gets the one that is asked for; one that asks with several gets them in turn.
        #[arg(long)]
        rotate: bool,
        /// With --rotate: what the old key signed counts beside the new one for so many days; 0 if it may be in wrong hands.
        #[arg(long, default_value_t = 7, requires = "rotate")]
        overlap_days: u64,
    },
    /// Takes a device out, for good: what it measures from now on does not count, what is final stays.
    RevokeDevice {
        /// Its name.
        device: DeviceId,
    },
    /// Takes a gateway out, for good: it commits nothing any more, and no node talks to it as a gateway.
    RevokeGateway {
        /// Its name.
        gateway: GatewayId,
    },
}

/// Raises the organisation's voice.
pub(super) fn raise(node: &Node, key: &Path, change: For) -> anyhow::Result<String> {
    let (desk, change) = (desk(node, key)?, change.change()?);
    now(members::raise(&desk, change))
}

/// Makes a decision about gateways and devices final.
pub(super) fn decide(node: &Node, key: &Path, decision: Edge) -> anyhow::Result<String> {
    let desk = desk(node, key)?;
    match decision {
        Edge::Approve {
            file,
            rotate,
            overlap_days,
        } => {
            let requests: Vec<DeviceEnrolment> = serde_json::from_str(&read(&file, REQUESTS_BYTES_MAX)?)
                .with_context(|| format!("{} is not what `gateway claim requests` prints", file.display()))?;
            let overlap_ms = overlap_days.saturating_mul(DAY_MS);
            if overlap_ms > OVERLAP_MS_MAX {
                anyhow::bail!("--overlap-days is at most {}", OVERLAP_MS_MAX / DAY_MS);
            }
            let known = if rotate {
                Known::Rotate { overlap_ms }
            } else {
                Known::Leave
            };
            now(edge::approve(&desk, requests, known))
        }
        Edge::RevokeDevice { device } => now(desk.decide(Action::RevokeDevice(device))),
        Edge::RevokeGateway { gateway } => now(desk.decide(Action::RevokeGateway(gateway))),
    }
}

/// Erases a key for good.
pub(super) fn erase(node: &Node, key: &Path, (erased, again): (KeyId, KeyId)) -> anyhow::Result<String> {
    if erased != again {
        anyhow::bail!("--yes-erase names another key: give the id of the key that is to be erased twice");
    }
    now(desk(node, key)?.decide(Action::Erase(Erasure { key: erased })))
}

fn desk<'a>(node: &'a Node, key: &Path) -> anyhow::Result<Desk<'a>> {
    let mut faults = Faults::default();
    keep_private("--organization-key", key, &mut faults);
    faults
        .none_or(())
        .map_err(|faults| anyhow::anyhow!("{}", faults.to_string().trim()))?;
    let key = SigningKey::from_pem(&zeroize::Zeroizing::new(read(key, SMALL_FILE_BYTES_MAX)?))
        .context("--organization-key")?;
    let (client, url, organization, genesis) = node.member()?;
    let organization = organization.clone();
    Ok(Desk {
        client,
        url,
        genesis,
        organization,
        key,
    })
}

fn now<T>(work: impl Future<Output = Result<T, crate::decision::Error>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work)?)
}

//! What the custodian signs before anything is measured: the gateway, its devices, the patients' keys; waited for until final.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use ledger::{
    state::Outcome,
    transaction::{Action, Author, DeviceEnrolment, SignedTransaction, Transaction},
};
use tokio::time::{sleep, timeout};

use crate::{client::Node, fault::Fault, household::Device, network::Network};

/// Transactions that are waited for at a time.
const AT_ONCE_MAX: usize = 32;
/// The pause before a question is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Submits everything that founds the home, and waits until every node has applied it.
///
/// # Errors
/// [`Fault::Start`] if the network refuses something or takes longer than `within`.
pub async fn enrol(network: &Network, nodes: &[Node], within: Duration) -> Result<(), Fault> {
    let enrolled = timeout(within, enrol_all(network, nodes)).await;
    enrolled.unwrap_or_else(|_| {
        let seconds = within.as_secs();
        Err(Fault::Start(format!(
            "the network did not make the enrolments final within {seconds} s"
        )))
    })
}

async fn enrol_all(network: &Network, nodes: &[Node]) -> Result<(), Fault> {
    let secretary = Secretary {
        network,
        sequence: AtomicU64::new(1),
    };
    let (gateway, household) = (&network.gateway.enrolment, &network.household);
    // Devices are enrolled at a gateway that the chain knows, so it goes first.
    let height = secretary
        .settle(&nodes[0], Action::EnrolGateway(gateway.clone()))
        .await?;
    reached(nodes, height).await;
    let desk = [Action::EnrolGateway(network.desk.enrolment.clone())];
    let keys = household.people.iter().flat_map(|person| {
        let keys = [&person.key, &person.clinical.1];
        keys.map(|key| Action::AnnounceKey(key.clone()))
    });
    let enrol = |device: &Device| {
        let place = (gateway.gateway.clone(), device.id.clone());
        let enrolment = DeviceEnrolment::of(&network.id(), place, &device.signing_key()?);
        Ok(Action::EnrolDevice(enrolment))
    };
    let devices: Vec<_> = household.devices.iter().map(enrol).collect::<Result<_, Fault>>()?;
    let heights = stream::iter(keys.chain(devices).chain(desk).enumerate())
        .map(|(i, action)| secretary.settle(&nodes[i % nodes.len()], action))
        .buffer_unordered(AT_ONCE_MAX)
        .try_collect::<Vec<_>>()
        .await?;
    reached(nodes, heights.into_iter().fold(height, u64::max)).await;
    Ok(())
}

/// Waits until every node has applied the block at a height.
async fn reached(nodes: &[Node], height: u64) {
    for node in nodes {
        while !node.head().await.is_ok_and(|head| head.height >= height) {
            sleep(PAUSE).await;
        }
    }
}

/// Signs for the custodian, each transaction under a number of its own.
struct Secretary<'a> {
    network: &'a Network,
    sequence: AtomicU64,
}

impl Secretary<'_> {
    /// Submits an action until a node takes it, waits until it is final, and returns its height.
    async fn settle(&self, node: &Node, action: Action) -> Result<u64, Fault> {
        let kind = action.kind();
        let refused = |why: String| Fault::Start(format!("the network refused to {kind}: {why}"));
        let transaction = self.sign(action);
        let mut known = false;
        loop {
            let answer = if known { Ok(()) } else { node.submit(&transaction).await };
            known |= answer.is_ok();
            let settled = match answer {
                Ok(()) => node.settled(&transaction.id()).await,
                Err(e) => Err(e),
            };
            match settled {
                Ok(Some((height, Outcome::Applied))) => return Ok(height),
                Ok(Some((_, Outcome::Refused(why)))) => return Err(refused(why.to_string())),
                Ok(None) => {}
                Err(e) if e.is_unknown() && known => known = false,
                Err(e) if e.may_pass_later() => sleep(PAUSE).await,
                Err(e) => return Err(refused(e.to_string())),
            }
        }
    }

    fn sign(&self, action: Action) -> SignedTransaction {
        let custodian = self.network.custodian();
        let transaction = Transaction {
            network: self.network.id(),
            author: Author::Organization(custodian.id().clone()),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            action,
        };
        transaction.sign(&custodian.key)
    }
}

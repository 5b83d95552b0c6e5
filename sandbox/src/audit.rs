//! An auditor's walk over the chain: every receipt verified, every payload fetched, opened and counted; no node is believed.

use std::collections::{BTreeSet, HashMap};

use futures::{StreamExt as _, stream};
use ledger::{handover::Committees, proof::Receipt, transaction::Commitment};
use record::{
    bundle::{SealedBundle, SubjectSecret},
    canonical::cid_of,
    ids::{BundleId, DeviceId, KeyId, ReadingId},
    signature::PublicKey,
};
use serde::Deserialize;

use crate::{
    client::{CallError, Node},
    fault::Fault,
    network::Network,
    promises::{OnChain, Served},
};

/// Questions that are open at a time.
const AT_ONCE_MAX: usize = 8;
/// Patients whose observations are paged through at a time.
const PATIENTS_AT_ONCE_MAX: usize = 4;
/// How often a question is asked anew when nobody answers.
const TRIES: usize = 3;

/// What an auditor needs: the validators' keys, the devices' keys, and the patients' secrets.
#[derive(Debug)]
pub struct Auditor {
    committees: Committees,
    devices: HashMap<DeviceId, PublicKey>,
    secrets: HashMap<KeyId, SubjectSecret>,
    nodes: Vec<Node>,
}

impl Auditor {
    /// An auditor of a network whose household is known to us. It asks as the first node's peer, since payloads are not
    /// handed to everybody.
    ///
    /// # Errors
    /// [`Fault::File`] or [`Fault::Identity`].
    pub fn of(network: &Network) -> Result<Self, Fault> {
        let http = network.callers.with_certificate(&network.nodes[0].tls)?;
        let household = &network.household;
        Ok(Self {
            committees: Committees::founding(&network.genesis),
            devices: household.devices.iter().map(|d| (d.id.clone(), d.key)).collect(),
            secrets: household
                .people
                .iter()
                .map(|p| (p.key.id(), p.secret.clone()))
                .collect(),
            nodes: network.nodes.iter().map(|n| Node::at(http.clone(), &n.url)).collect(),
        })
    }

    /// Walks the chain up to a height and counts each reading; the nodes are asked in turn.
    pub async fn walk(mut self, height: u64) -> OnChain {
        let mut found = OnChain::default();
        if let Err(why) = self.learn_committees().await {
            found.fault(format!("who votes is not proven: {why}"));
        }
        let this = &self;
        let blocks = stream::iter(1..=height)
            .map(|h| this.bundles_at(h))
            .buffered(AT_ONCE_MAX);
        let bundles = blocks.collect::<Vec<_>>().await;
        let mut distinct = BTreeSet::new();
        for (block, height) in bundles.into_iter().zip(1u64..) {
            match block {
                Ok(bundles) => distinct.extend(bundles),
                Err(e) => found.fault(format!("block {height} cannot be read: {e}")),
            }
        }
        let readings = stream::iter(distinct.into_iter().zip(0..))
            .map(|(bundle, turn)| async move { (bundle, this.readings_in(&bundle, turn).await) });
        let mut readings = std::pin::pin!(readings.buffer_unordered(AT_ONCE_MAX));
        while let Some((bundle, readings)) = readings.next().await {
            match readings {
                Ok(readings) => readings.into_iter().for_each(|reading| found.found(reading)),
                Err(why) => found.fault(format!("bundle {bundle} does not pass the audit: {why}")),
            }
        }
        found
    }

    /// The committees after the founders, each proven by the one before.
    async fn learn_committees(&mut self) -> Result<(), String> {
        let told = self.asked(0, async |node: &Node| node.handovers().await).await;
        let told = told.map_err(|e| e.to_string())?;
        let told = Committees::of(told).map_err(|e| e.to_string())?;
        if told.at(0) != self.committees.at(0) {
            return Err("a node names other founders".to_owned());
        }
        self.committees = told;
        Ok(())
    }

    async fn bundles_at(&self, height: u64) -> Result<Vec<BundleId>, CallError> {
        let block = self.asked(height, async |node: &Node| node.block(height).await).await?;
        Ok(block
            .transactions
            .into_iter()
            .filter_map(|transaction| transaction.bundle)
            .collect())
    }

    /// The readings of one bundle: receipt, votes, payload, seal, batch and each device's signature are checked.
    async fn readings_in(&self, bundle: &BundleId, turn: u64) -> Result<Vec<ReadingId>, String> {
        let receipt = self.asked(turn, async |node: &Node| node.receipt(bundle).await).await;
        let receipt = receipt
            .map_err(|e| format!("receipt: {e}"))?
            .ok_or("receipt: it is in a block, but not final")?;
        Receipt::verify(&receipt, &self.committees).map_err(|e| format!("receipt: {e}"))?;
        let Some(commitment) = commitment(&receipt)? else {
            return Ok(Vec::new());
        };
        let payload = self
            .asked(turn, async |node: &Node| node.payload(&commitment.cid).await)
            .await;
        self.open(&commitment, &payload.map_err(|e| format!("payload: {e}"))?)
    }

    fn open(&self, commitment: &Commitment, payload: &[u8]) -> Result<Vec<ReadingId>, String> {
        if cid_of(payload) != commitment.cid || SealedBundle::id_of(payload) != commitment.bundle {
            return Err("the payload is not the one committed to".to_owned());
        }
        let secret = self
            .secrets
            .get(&commitment.key)
            .ok_or("it is sealed to a key that is not of this household")?;
        let sealed = SealedBundle::decode(payload).map_err(|e| e.to_string())?;
        let bundle = sealed
            .open(&self.committees.network(), secret)
            .map_err(|e| e.to_string())?;
        if bundle.root() != commitment.root || bundle.entries.len() != usize::try_from(commitment.count).unwrap_or(0) {
            return Err("the batch is not the one committed to".to_owned());
        }
        let key_of = |device: &DeviceId| self.devices.get(device).copied();
        let decode = |entry: &record::bundle::Entry| entry.reading.decode(key_of).map(|reading| reading.id());
        bundle
            .entries
            .iter()
            .map(decode)
            .collect::<Result<_, _>>()
            .map_err(|refusal| refusal.to_string())
    }

    /// Asks one node after the other, starting with another one each turn, until one answers.
    async fn asked<T>(&self, turn: u64, question: impl AsyncFn(&Node) -> Result<T, CallError>) -> Result<T, CallError> {
        let first = usize::try_from(turn % self.nodes.len() as u64).expect("below the number of nodes");
        let mut nodes = self.nodes.iter().cycle().skip(first);
        let mut answer = question(nodes.next().expect("a network has a node")).await;
        for node in nodes.take(TRIES) {
            if !answer.as_ref().is_err_and(CallError::may_pass_later) {
                break;
            }
            answer = question(node).await;
        }
        answer
    }
}

/// The commitment in a receipt that has been verified; none if it is a document's, which has no readings.
fn commitment(receipt: &str) -> Result<Option<Commitment>, String> {
    #[derive(Deserialize)]
    struct Inside {
        transaction: ledger::transaction::SignedTransaction,
    }
    let inside: Inside = serde_json::from_str(receipt).map_err(|e| e.to_string())?;
    match (inside.transaction.commitment(), inside.transaction.document()) {
        (Some(commitment), _) => Ok(Some(commitment.clone())),
        (None, Some(_)) => Ok(None),
        (None, None) => Err("its transaction is no commitment".to_owned()),
    }
}

/// Pages through everything the custodian's hospital is served about its patients.
pub async fn visit_hospital(network: &Network, hospital: &Node, token: &str) -> Served {
    let patients = network.household.people.iter().map(|person| person.patient.id);
    let pages = stream::iter(patients).map(|patient| async move {
        let (mut resources, mut next) = (Vec::new(), None);
        loop {
            match hospital.observations(patient, token, next.as_deref()).await {
                Ok(page) => {
                    resources.extend(page.resources);
                    next = page.next;
                }
                Err(e) => {
                    return (
                        resources,
                        Some(format!("the observations of patient {patient} cannot be read: {e}")),
                    );
                }
            }
            if next.is_none() {
                return (resources, None);
            }
        }
    });
    let mut pages = std::pin::pin!(pages.buffer_unordered(PATIENTS_AT_ONCE_MAX));
    let mut served = Served::default();
    while let Some((resources, fault)) = pages.next().await {
        resources.iter().for_each(|resource| served.take_in(resource));
        fault.into_iter().for_each(|sentence| served.fault(sentence));
    }
    served
}

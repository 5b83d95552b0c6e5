//! The end of a run: nothing new is measured, everything on its way arrives, and then every promise is checked.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    agreement::{Agreement, agree},
    audit::{Auditor, visit_hospital},
    client::Node,
    config::Limits,
    monitor::Monitor,
    network::Network,
    processes::Processes,
    promises::{Acknowledged, OnChain, Verdict, judge},
    status::Screen,
};

/// The pause before something that has not happened yet is looked at again.
const PAUSE: Duration = Duration::from_millis(250);

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// The heads that the nodes showed when they were compared, if they were.
    pub agreement: Option<Agreement>,
    /// What became of the readings, if it was checked.
    pub verdict: Option<Verdict>,
    /// Promises about anything else than readings that do not hold.
    pub failures: Vec<String>,
}

impl Ending {
    /// The end of a run that was interrupted; one that was to be checked has failed then.
    #[must_use]
    pub fn interrupted(to_be_checked: bool) -> Self {
        let failure = to_be_checked.then(|| "interrupted before every promise was checked".to_owned());
        Self {
            failures: failure.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether every promise held; absent if nothing was checked and nothing failed.
    #[must_use]
    pub fn passed(&self) -> Option<bool> {
        let failed = !self.failures.is_empty() || self.verdict.as_ref().is_some_and(|v| !v.failures.is_empty());
        (failed || self.verdict.is_some()).then_some(!failed)
    }
}

/// What the checks look at.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The network.
    pub network: &'a Network,
    /// Its nodes.
    pub nodes: &'a [Node],
    /// The custodian's access token.
    pub token: &'a str,
    /// How long what is waited for may take.
    pub limits: Limits,
}

impl Scene<'_> {
    /// Stops the fleet, waits until all it had acknowledged is final and visible, and compares everything.
    pub async fn end(&self, processes: &mut Processes, monitor: &mut Monitor, screen: &mut Screen) -> Ending {
        let mut ending = Ending::default();
        ending.failures.extend(processes.stop_fleet().await);
        ending.failures.extend(self.drain(processes, monitor, screen).await);
        screen.say("checking that all nodes agree");
        let names: Vec<_> = self.network.nodes.iter().map(|node| node.name.as_str()).collect();
        let agreement = agree(self.nodes, &names, self.limits.agree()).await;
        ending.failures.extend(agreement.fault.clone());
        screen.say("walking the chain: every receipt, every payload, every reading");
        let (height, chain) = self.audit(agreement.height()).await;
        ending.agreement = Some(agreement);
        screen.say(&format!(
            "found {} readings up to height {height}; asking the hospital for all of them",
            chain.count()
        ));
        let verdict = self.judge(&chain).await;
        ending.failures.extend(unacknowledged(monitor, &verdict));
        ending.verdict = Some(verdict);
        ending
    }

    /// Waits until the gateway has forgotten every bundle, which it does with a checked receipt only.
    async fn drain(&self, processes: &Processes, monitor: &mut Monitor, screen: &mut Screen) -> Option<String> {
        let deadline = Instant::now() + self.limits.drain();
        loop {
            monitor.look(processes).await;
            // Only an answer counts: what was seen last may be old.
            let gateway = monitor.gateway().await;
            if gateway
                .as_ref()
                .is_ok_and(|status| status.spooled == 0 && status.in_flight == 0)
            {
                monitor.look(processes).await;
                return None;
            }
            screen.show("draining", monitor.last());
            if Instant::now() >= deadline {
                let state = gateway.map_or_else(
                    |e| format!("it does not show its status: {e}"),
                    |status| format!("spooled {}, in flight {}", status.spooled, status.in_flight),
                );
                return Some(format!(
                    "the gateway was not drained within limits.drain_s = {}: {state}; what is spooled is not lost, and \
                     counts as a gap",
                    self.limits.drain_s
                ));
            }
            sleep(PAUSE).await;
        }
    }

    async fn audit(&self, agreed: Option<u64>) -> (u64, OnChain) {
        let height = match agreed {
            Some(height) => height,
            None => self.nodes[0].head().await.map_or(0, |head| head.height),
        };
        let chain = match Auditor::of(self.network) {
            Ok(auditor) => auditor.walk(height).await,
            Err(e) => {
                let mut chain = OnChain::default();
                chain.fault(format!("the chain was not audited: {e}"));
                chain
            }
        };
        (height, chain)
    }

    /// Compares; while something is missing at the hospital, its node may still be indexing.
    async fn judge(&self, chain: &OnChain) -> Verdict {
        let list = self.network.fleet_data_dir().join("acknowledged.ndjson");
        let text = std::fs::read_to_string(&list).map_err(|e| e.to_string());
        let acknowledged = text.and_then(|text| Acknowledged::parse(&text));
        let (acknowledged, unreadable) = match acknowledged {
            Ok(acknowledged) => (acknowledged, None),
            Err(e) => (
                Acknowledged::default(),
                Some(format!("{} cannot be read: {e}", list.display())),
            ),
        };
        let deadline = Instant::now() + self.limits.agree();
        loop {
            let served = visit_hospital(self.network, &self.nodes[0], self.token).await;
            let mut verdict = judge(&acknowledged, chain, &served);
            if verdict.failures.is_empty() || Instant::now() >= deadline {
                verdict.failures.extend(unreadable);
                return verdict;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Readings that were published and never acknowledged are no loss, but the fleet had time to send them again.
fn unacknowledged(monitor: &Monitor, verdict: &Verdict) -> Vec<String> {
    let now = monitor.last();
    let by_fleet = verdict.acknowledged - verdict.by_hand;
    let missing = now.fleet.published.saturating_sub(by_fleet);
    let restarted = now.fleet_process.report.restarts > 0;
    [
        (by_fleet == 0).then(|| "nothing that the fleet published was acknowledged".to_owned()),
        (missing > 0 && !restarted).then(|| format!("{missing} readings were published but never acknowledged")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checked_run_without_failures_has_passed() {
        assert_eq!(Ending::default().passed(), None);
        assert_eq!(Ending::interrupted(false).passed(), None);
        assert_eq!(Ending::interrupted(true).passed(), Some(false));
        let checked = |failures| Ending {
            verdict: Some(Verdict {
                failures,
                ..Verdict::default()
            }),
            ..Ending::default()
        };
        assert_eq!(checked(vec![]).passed(), Some(true));
        assert_eq!(checked(vec!["1 reading is lost".to_owned()]).passed(), Some(false));
    }
}

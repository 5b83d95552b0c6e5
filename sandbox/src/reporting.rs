//! Fills the report from what was founded, what was seen last, and what came of it.

use std::fmt::Write as _;

use crate::{
    client::Head,
    ending::Ending,
    household::Device,
    identities::{TlsIdentity, Tokens},
    monitor::{NodeView, Snapshot},
    network::{GATEWAY, HOME_USER, Network, NewcomerPlan, NodePlan, ObserverPlan},
    report::{
        BrokerReport, DeviceReport, FleetReport, GatewayReport, HospitalReport, Latencies, NodeReport, PatientReport,
        PreparedReport, Report, StrangerReport,
    },
};

/// The report at this moment.
#[must_use]
pub fn report(network: &Network, tokens: &Tokens, now: &Snapshot, ending: &Ending) -> Report {
    let verdict = ending.verdict.clone().unwrap_or_default();
    let checked = ending.verdict.is_some();
    let (custodian, stranger, household) = (network.custodian(), network.stranger(), &network.household);
    Report {
        ready: true,
        passed: ending.passed(),
        failures: ending.failures.iter().chain(&verdict.failures).cloned().collect(),
        network: network.id(),
        data_dir: network.folder.root().to_owned(),
        validators_file: network.validators_file.clone(),
        pid: std::process::id(),
        published: now.fleet.published + verdict.by_hand,
        acknowledged: if checked {
            verdict.acknowledged
        } else {
            now.fleet.acknowledged
        },
        final_readings: if checked {
            verdict.final_readings
        } else {
            now.gateway.final_readings
        },
        by_hand: verdict.by_hand,
        unconfirmed: verdict.unconfirmed,
        duplicates: verdict.duplicates,
        gaps: verdict.gaps,
        quarantined: now.gateway.quarantined.total,
        latency_ms: latencies(now),
        nodes: network
            .nodes
            .iter()
            .zip(&now.nodes)
            .enumerate()
            .map(|(i, (plan, view))| node(plan, view, sighting(i, view, ending)))
            .collect(),
        observers: network.observers.iter().map(observer).collect(),
        newcomer: newcomer(&network.newcomer),
        gateway: gateway(network, now),
        broker: broker(network, now),
        fleet: FleetReport {
            data_dir: network.fleet_data_dir(),
            process: now.fleet_process.report.clone(),
        },
        hospital: HospitalReport {
            organization: custodian.id().clone(),
            role: custodian.organization.role,
            client_id: custodian.client_id(),
            private_key_file: custodian.key_file.clone(),
            token: tokens.hospital.clone(),
            fhir: format!("{}/fhir", network.nodes[0].url),
            ca_file: network.ca_file.clone(),
        },
        stranger: StrangerReport {
            organization: stranger.id().clone(),
            token: tokens.stranger.clone(),
        },
        patients: household
            .people
            .iter()
            .map(|p| PatientReport {
                id: p.patient.id,
                name: p.name(),
            })
            .collect(),
        devices: devices(network),
    }
}

/// The head that this node itself showed: when all were compared, else when it was looked at last.
fn sighting<'a>(index: usize, view: &'a NodeView, ending: &'a Ending) -> Option<&'a Head> {
    match &ending.agreement {
        Some(agreement) => agreement.shown.get(index)?.as_ref(),
        None => view.head.as_ref(),
    }
}

fn node(plan: &NodePlan, view: &NodeView, head: Option<&Head>) -> NodeReport {
    NodeReport {
        name: plan.name.clone(),
        http: plan.url.clone(),
        height: head.map(|head| head.height),
        head: head.map(|head| head.digest),
        state_digest: head.map(|head| head.state_digest),
        data_dir: plan.data_dir.clone(),
        process: view.process.report.clone(),
    }
}

fn observer(plan: &ObserverPlan) -> PreparedReport {
    PreparedReport {
        organization: plan.organization.clone(),
        http: plan.url.clone(),
        config_file: plan.config_file.clone(),
        data_dir: plan.data_dir.clone(),
    }
}

fn newcomer(plan: &NewcomerPlan) -> PreparedReport {
    PreparedReport {
        organization: plan.organization.clone(),
        http: plan.url.clone(),
        config_file: plan.config_file.clone(),
        data_dir: plan.data_dir.clone(),
    }
}

fn gateway(network: &Network, now: &Snapshot) -> GatewayReport {
    GatewayReport {
        mqtt: format!("mqtts://{}", network.ports.mqtt()),
        mqtt_user: HOME_USER.to_owned(),
        mqtt_password_file: network.gateway.home_password.file.clone(),
        ca_file: network.ca_file.clone(),
        reading_key: network.gateway.reading_key.public(),
        http: network.gateway_url(),
        data_dir: network.gateway.data_dir.clone(),
        process: now.gateway_process.report.clone(),
    }
}

fn latencies(now: &Snapshot) -> Latencies {
    Latencies {
        publish_to_puback: now.fleet.latency_ms.publish_to_puback,
        publish_to_final: now.gateway.latency_ms.publish_to_final,
        publish_to_visible: now.publish_to_visible,
    }
}

fn broker(network: &Network, now: &Snapshot) -> Option<BrokerReport> {
    let process = &now.broker_process;
    (!process.name.is_empty()).then(|| BrokerReport {
        data_dir: network.mqtt.data_dir.clone(),
        process: process.report.clone(),
    })
}

fn devices(network: &Network) -> Vec<DeviceReport> {
    let devices = network.household.devices.iter().zip(&network.mqtt.devices);
    devices.map(|(d, tls)| device(network, d, tls)).collect()
}

fn device(network: &Network, device: &Device, tls: &TlsIdentity) -> DeviceReport {
    DeviceReport {
        id: device.id.clone(),
        patient: network.household.person_of(device).patient.id,
        recording: device.recording.clone(),
        key_file: device.key_file.clone(),
        user: device.id.to_string(),
        password_file: device.password.file.clone(),
        certificate_file: tls.certificate.clone(),
        private_key_file: tls.private_key.clone(),
        topic: format!("vitalfog/v1/{GATEWAY}/{}/reading", device.id),
    }
}

/// What came of a run, in a few lines.
#[must_use]
pub fn summary(report: &Report) -> String {
    let verdict = match report.passed {
        Some(true) => "every promise held",
        Some(false) => "NOT EVERY PROMISE HELD",
        None => "nothing was checked; --for TIME ends with a check",
    };
    let (published, acknowledged, on_chain) = (report.published, report.acknowledged, report.final_readings);
    let mut text =
        format!("{verdict}\n  readings    published {published}, acknowledged {acknowledged}, final {on_chain}");
    if report.passed.is_some() {
        let _ = write!(text, ", duplicates {}, gaps {}", report.duplicates, report.gaps);
    }
    let _ = writeln!(text, ", quarantined {}", report.quarantined);
    let latencies = &report.latency_ms;
    for (what, latency) in [
        ("to PUBACK", &latencies.publish_to_puback),
        ("to final", &latencies.publish_to_final),
        ("to visible", &latencies.publish_to_visible),
    ] {
        let _ = writeln!(text, "  {what:<11} p50 {}, p99 {}", ms(latency.p50), ms(latency.p99));
    }
    for node in &report.nodes {
        let head = node.head.map_or_else(|| "-".to_owned(), |head| head.to_string());
        let height = node.height.map_or_else(|| "-".to_owned(), |height| height.to_string());
        let (name, peak) = (&node.name, mb(node.process.rss_bytes));
        let _ = writeln!(text, "  {name:<11} height {height}, head {head}, peak memory {peak}");
    }
    let _ = writeln!(
        text,
        "  {:<11} peak memory {}",
        "gateway",
        mb(report.gateway.process.rss_bytes)
    );
    report.failures.iter().for_each(|failure| {
        let _ = writeln!(text, "  FAILED: {failure}");
    });
    let _ = write!(text, "  everything is kept in {}", report.data_dir.display());
    text
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"))
}

fn mb(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} MB", bytes / 1_000_000))
}

#[cfg(test)]
mod tests {
    use record::canonical::{Digest, Domain};

    use super::*;
    use crate::{agreement::Agreement, report::Percentiles};

    fn head(height: u64, state: &[u8]) -> Option<Head> {
        Some(Head {
            height,
            digest: Digest::of(Domain::HEADER, &[&height.to_be_bytes()]),
            state_digest: Digest::of(Domain::STATE, &[state]),
        })
    }

    #[test]
    fn each_node_is_reported_with_what_it_showed_itself() {
        let view = NodeView {
            head: head(4, b"x"),
            ..NodeView::default()
        };
        let mut ending = Ending::default();
        assert_eq!(sighting(1, &view, &ending), view.head.as_ref());
        let shown = vec![head(7, b"x"), head(7, b"y"), None];
        ending.agreement = Some(Agreement {
            shown: shown.clone(),
            fault: Some("the nodes' heads differ at height 7".to_owned()),
        });
        let reported: Vec<_> = (0..3).map(|i| sighting(i, &view, &ending).cloned()).collect();
        assert_eq!(reported, shown);
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        assert_eq!(
            serde_json::to_string(&Percentiles::default()).expect("encodes"),
            r#"{"p50":null,"p99":null}"#
        );
        assert_eq!((ms(None), mb(None)), ("-".to_owned(), "unknown".to_owned()));
    }
}

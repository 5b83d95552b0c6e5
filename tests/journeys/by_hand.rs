//! A hand-made device: builds a reading, signs it with an enrolled device's key, publishes it as the home's own user.

use std::{fs, time::Duration};

use record::{
    decimal::Decimal,
    ids::BootId,
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, TlsConfiguration, Transport};
use sandbox::report::{DeviceReport, Report};
use tokio::time::timeout;

/// How long the broker may take to answer, while the machine is busy.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A reading of this device with one value, of a start that no other message of the test has.
pub(crate) fn reading(device: &DeviceReport, code: &str, value: &str, unit: &str) -> Reading {
    Reading {
        v: VERSION,
        device: device.id.clone(),
        boot: BootId {
            counter: 1,
            random: rand::random(),
        },
        seq: 1,
        up_ms: 0,
        wall: Some(jiff::Timestamp::now().as_millisecond()),
        time_quality: TimeQuality::Synced,
        observations: vec![Measured {
            code: code.to_owned(),
            value: Some(value.parse::<Decimal>().expect("a decimal")),
            samples: None,
            unit: unit.to_owned(),
            state: MeasurementState::Valid,
        }],
    }
}

/// The key of an enrolled device.
pub(crate) fn key(device: &DeviceReport) -> SigningKey {
    let pem = fs::read_to_string(&device.key_file).expect("the report names the key's file");
    SigningKey::from_pem(&pem).expect("a key")
}

/// Publishes a message as the home's own user; says how the broker answered, or that it did not.
pub(crate) async fn publish(report: &Report, topic: &str, message: impl Into<Vec<u8>>) -> Result<String, String> {
    let password = fs::read(&report.gateway.mqtt_password_file).expect("the report names the password's file");
    publish_as(report, (&report.gateway.mqtt_user, password), topic, message).await
}

/// The same as another user.
pub(crate) async fn publish_as(
    report: &Report,
    login: (&str, Vec<u8>),
    topic: &str,
    message: impl Into<Vec<u8>>,
) -> Result<String, String> {
    let (client, mut packets) = AsyncClient::builder(options(report, login)).build();
    let mut answer = Box::pin(async {
        let options = PublishOptions::at_least_once();
        let notice = client
            .publish_tracked(topic, message.into(), options)
            .await
            .map_err(|e| e.to_string())?;
        notice
            .wait_async()
            .await
            .map(|result| format!("{result:?}"))
            .map_err(|e| e.to_string())
    });
    let exchange = async {
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                packet = packets.poll() => packet.map_err(|e| e.to_string())?,
            };
        }
    };
    timeout(ANSWER_MAX, exchange)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

fn options(report: &Report, (user, password): (&str, Vec<u8>)) -> MqttOptions {
    let address = report.gateway.mqtt.strip_prefix("mqtts://").expect("an MQTT address");
    let (host, port) = address.split_once(':').expect("host and port");
    let ca = fs::read(&report.gateway.ca_file).expect("the report names the CA's file");
    let client = format!("by-hand-{}", rand::random::<u32>());
    let mut options = MqttOptions::new(client, (host, port.parse().expect("a port")));
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls(&ca))))
        .set_credentials(user, password)
        .set_clean_start(true)
        .set_max_packet_size(None);
    options
}

fn tls(ca: &[u8]) -> std::sync::Arc<rustls::ClientConfig> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca).expect("a certificate"))
        .expect("a CA");
    std::sync::Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

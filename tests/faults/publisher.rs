//! A device that publishes one reading at a time and knows what became of each.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use record::{
    decimal::Decimal,
    ids::{BootId, DeviceId, ReadingId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use rumqttc::{
    AsyncClient, EventLoop, MqttOptions, PubAckReason, PublishNoticeError, PublishOptions, PublishResult,
    TlsConfiguration, Transport,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sandbox::network::{GATEWAY, Network};
use tokio::time::{sleep, timeout};

/// An answer comes within this time, or is taken for lost.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What the gateway answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Acknowledged,
    Refused(PubAckReason),
    /// The connection broke: nobody knows.
    Lost,
}

/// One device.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    key: SigningKey,
    pub(crate) boot: BootId,
    options: MqttOptions,
    link: Option<(AsyncClient, EventLoop)>,
    /// How many readings it has made.
    pub(crate) last_seq: u64,
    /// The numbers that were acknowledged.
    pub(crate) acknowledged: Vec<u64>,
}

impl Device {
    pub(crate) fn of(network: &Network, index: usize, broker: SocketAddr) -> Self {
        let device = &network.household.devices[index];
        let pem = fs::read_to_string(&device.key_file).expect("the device's key");
        let password = fs::read(&device.password.file).expect("the device's password");
        let mut options = MqttOptions::new(device.id.as_str(), (broker.ip().to_string(), broker.port()));
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls(network))))
            .set_credentials(device.id.as_str(), password)
            .set_clean_start(true)
            .set_max_packet_size(None);
        Self {
            id: device.id.clone(),
            key: SigningKey::from_pem(&pem).expect("a key"),
            boot: BootId {
                counter: 1,
                random: rand::random(),
            },
            options,
            link: None,
            last_seq: 0,
            acknowledged: Vec::new(),
        }
    }

    /// The readings that were acknowledged.
    pub(crate) fn readings(&self) -> impl Iterator<Item = ReadingId> {
        self.acknowledged.iter().map(|seq| ReadingId {
            device: self.id.clone(),
            boot: self.boot,
            seq: *seq,
        })
    }

    /// The signed reading of this number: always the same bytes.
    pub(crate) fn reading(&self, seq: u64) -> Vec<u8> {
        let reading = Reading {
            v: VERSION,
            device: self.id.clone(),
            boot: self.boot,
            seq,
            up_ms: seq * 1_000,
            wall: None,
            time_quality: TimeQuality::Relative,
            observations: vec![Measured {
                code: "8867-4".to_owned(),
                value: Some(Decimal::whole(60 + i64::try_from(seq % 40).expect("below 40"))),
                samples: None,
                unit: "/min".to_owned(),
                state: MeasurementState::Valid,
            }],
        };
        reading.sign(&self.key).as_bytes().to_vec()
    }

    /// Publishes the next reading; one that is not acknowledged is its next again.
    pub(crate) async fn publish_next(&mut self) -> Answer {
        let answer = self.publish(self.last_seq + 1).await;
        if answer == Answer::Acknowledged {
            self.last_seq += 1;
            self.acknowledged.push(self.last_seq);
        }
        answer
    }

    /// Publishes the reading of this number.
    pub(crate) async fn publish(&mut self, seq: u64) -> Answer {
        let message = self.reading(seq);
        let topic = format!("vitalfog/v1/{GATEWAY}/{}/reading", self.id);
        let (client, mut packets) = self
            .link
            .take()
            .unwrap_or_else(|| AsyncClient::builder(self.options.clone()).build());
        let sender = client.clone();
        let mut answer = Box::pin(async move {
            let options = PublishOptions::at_least_once();
            let notice = sender.publish_tracked(topic, message, options).await.ok()?;
            Some(notice.wait_async().await)
        });
        let exchange = async {
            loop {
                tokio::select! {
                    answer = &mut answer => return answer,
                    packet = packets.poll() => if packet.is_err() { return None },
                }
            }
        };
        let answer = match timeout(ANSWER_MAX, exchange).await.ok().flatten() {
            Some(Ok(PublishResult::Qos1(ack))) if ack.reason == PubAckReason::Success => Answer::Acknowledged,
            Some(Ok(PublishResult::Qos1(ack))) if ack.reason == PubAckReason::NoMatchingSubscribers => {
                Answer::Acknowledged
            }
            Some(Ok(PublishResult::Qos1(ack))) => Answer::Refused(ack.reason),
            Some(Err(PublishNoticeError::V5PubAck(reason))) => Answer::Refused(reason),
            _ => Answer::Lost,
        };
        if answer == Answer::Lost {
            sleep(Duration::from_millis(50)).await;
        } else {
            self.link = Some((client, packets));
        }
        answer
    }
}

fn tls(network: &Network) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(&network.ca_file).expect("a certificate");
    roots.add(ca).expect("a CA");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    Arc::new(config.with_no_client_auth())
}

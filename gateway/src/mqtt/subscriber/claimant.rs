//! Claims behind an outside broker: its operator may read along, so a request proves its secret and does not show it.
//!
//! Whoever has the broker's user for claims can publish here, so everything is bounded: requests a second, their size, and how
//! often a claim may be asked for with a wrong proof. One who spoils a claim has not got it; a new code is printed.

use std::{collections::HashMap, path::PathBuf};

use record::topic;
use rumqttc::{AsyncClient, Publish};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{dialer::State, taker::acknowledge, voice::Voice};
use crate::{
    claim::{self, ClaimId, Evidence, Refused},
    intake::Intake,
    mqtt::rate::Rates,
    secret,
};

/// Requests a second that are looked at, and at once after a pause; the others are not answered, and may be made again.
const REQUESTS_PER_S: (u32, u32) = (10, 50);
/// How often a claim may be asked for with a wrong proof. A secret has 256 bits: this is against wasting the gateway's time, and
/// it is counted since the gateway's start.
const WRONG_PROOFS_MAX: u32 = 10;

/// How a new device with a printed code reaches the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it connects, `mqtts://host:port`.
    pub url: String,
    /// The broker's user for claims, who may publish requests and hear answers and nothing else. None: the device brings a
    /// certificate that the broker knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with that user's password. It is printed with each code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl Config {
    /// What is wrong with it, a sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !claim::is_address(&self.url) {
            faults.push(format!(
                "mqtt.subscriber.claims.url {:?} must be mqtts://host:port",
                self.url
            ));
        }
        if self.user.is_some() != self.password_file.is_some() {
            faults.push("mqtt.subscriber.claims: user and password_file belong together: set both or none".to_owned());
        }
        if let Some(Err(fault)) = self.password() {
            faults.push(fault);
        }
        faults
    }

    /// The user's password, if there is one.
    ///
    /// # Errors
    /// A sentence.
    pub fn password(&self) -> Option<Result<String, String>> {
        let file = self.password_file.as_deref()?;
        let read = secret::read(file).map(|password| password.trim_end().to_owned());
        Some(read.map_err(|e| format!("mqtt.subscriber.claims.password_file {}: {e}", file.display())))
    }
}

/// Answers new devices.
pub(super) struct Claimants {
    intake: Intake,
    voice: Voice,
    rates: Rates,
    /// Of claims that exist, so no more than there are.
    wrong: HashMap<ClaimId, u32>,
}

impl Claimants {
    pub(super) fn of(intake: Intake, voice: Voice) -> Self {
        Self {
            intake,
            voice,
            rates: Rates::of(REQUESTS_PER_S.0, REQUESTS_PER_S.1),
            wrong: HashMap::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        (client, link): (AsyncClient, watch::Receiver<State>),
        mut messages: mpsc::Receiver<(u64, Publish)>,
    ) {
        while let Some((connection, message)) = messages.recv().await {
            self.answer(&message).await;
            if !acknowledge((&client, &link), connection, &message).await {
                return;
            }
        }
    }

    async fn answer(&mut self, message: &Publish) {
        let Some(id) = self.claim_of(&message.topic) else {
            return;
        };
        if !self.rates.take("claims") {
            metrics::counter!("gateway_mqtt_refused_total", "what" => "claim-rate").increment(1);
            return;
        }
        let burnt = self.burn(&id, message.payload.to_vec()).await;
        if burnt.is_err() {
            metrics::counter!("gateway_claims_refused_total").increment(1);
        }
        let topic = claim::answer_topic(self.intake.gateway(), &id);
        self.voice.say(topic, claim::answer(&burnt)).await;
    }

    async fn burn(&mut self, id: &ClaimId, presented: Vec<u8>) -> Result<claim::Claim, Refused> {
        let directory = self.intake.directory();
        if !directory.has_claim(id) || self.wrong.get(id).is_some_and(|wrong| *wrong >= WRONG_PROOFS_MAX) {
            return Err(Refused::Unknown);
        }
        let burnt = directory.burn(id, presented, Evidence::Proof).await;
        if burnt == Err(Refused::Unknown) {
            let wrong = self.wrong.entry(id.clone()).or_default();
            *wrong += 1;
            if *wrong == WRONG_PROOFS_MAX {
                tracing::error!(
                    claim = %id,
                    "somebody guesses at a code, which is of no use any more: print a new one, and look who has the broker's \
                     user for claims"
                );
            }
        }
        burnt
    }

    fn claim_of(&self, name: &[u8]) -> Option<ClaimId> {
        let name = std::str::from_utf8(name).ok()?;
        let rest = name.strip_prefix(&topic::prefix(self.intake.gateway()))?;
        rest.strip_prefix("claim/")?.strip_suffix("/request")?.parse().ok()
    }
}

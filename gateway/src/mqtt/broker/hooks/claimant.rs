//! A device that presents its key with a claim: the claim is burnt on the disk before the answer leaves.

use rmqtt::{
    codec::v5::PublishAckReason,
    session::Session,
    types::{Publish, PublishAclResult},
};

use super::{Hooks, TAKE_TIMEOUT, reasons::answer};
use crate::claim::{self, ClaimId, Evidence, Refused, answer_topic, request_topic};

impl Hooks {
    /// Takes what a claimant publishes. The answer is published, too: a client of MQTT 3.1.1 sees no reason otherwise.
    pub(super) async fn present(&self, session: &Session, claim: &ClaimId, publish: &Publish) -> PublishAclResult {
        let gateway = self.intake.gateway();
        if *publish.topic != *request_topic(gateway, claim) {
            metrics::counter!("gateway_mqtt_refused_total", "what" => "topic").increment(1);
            let detail = format!("a claim publishes to {} alone", request_topic(gateway, claim));
            return answer(PublishAckReason::NotAuthorized, detail, true);
        }
        let burn = self
            .intake
            .directory()
            .burn(claim, publish.payload.to_vec(), Evidence::Login);
        // What is burnt after all is burnt for the same key: it may ask again.
        let burnt = tokio::time::timeout(TAKE_TIMEOUT, burn)
            .await
            .unwrap_or(Err(Refused::NotKept));
        self.say(session, answer_topic(gateway, claim), claim::answer(&burnt))
            .await;
        match burnt {
            Ok(_) => PublishAclResult::allow(),
            Err(refused) => {
                metrics::counter!("gateway_claims_refused_total").increment(1);
                answer(PublishAckReason::NotAuthorized, refused.to_string(), false)
            }
        }
    }
}

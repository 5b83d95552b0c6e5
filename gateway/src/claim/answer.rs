//! Where a claim is presented, where its answer stands, and in which words; the same with either broker.

use record::{ids::GatewayId, topic};
use serde_json::json;

use super::{Claim, ClaimId, Refused};

/// Where a claimant presents a key.
#[must_use]
pub fn request_topic(gateway: &GatewayId, claim: &ClaimId) -> String {
    format!("{}claim/{claim}/request", topic::prefix(gateway))
}

/// Where it reads the answer, and nothing else.
#[must_use]
pub fn answer_topic(gateway: &GatewayId, claim: &ClaimId) -> String {
    format!("{}claim/{claim}/answer", topic::prefix(gateway))
}

/// The answer, JSON.
#[must_use]
pub fn answer(burnt: &Result<Claim, Refused>) -> String {
    let answer = match burnt {
        Ok(burnt) => json!({"status": "claimed", "device": burnt.device, "user": burnt.device}),
        Err(refused) => json!({"status": "refused", "reason": refused.to_string()}),
    };
    answer.to_string()
}

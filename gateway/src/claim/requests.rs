//! What the operator is asked to approve: the keys that devices presented, in the order in which they are to follow each other.

use std::collections::BTreeMap;

use ledger::transaction::DeviceEnrolment;
use record::ids::{DeviceId, GatewayId};

use super::{Claims, Used};
use crate::standing::Standing;

impl Claims {
    /// What the operator is asked to approve: by device, every key that was presented after the last one that the chain has, in
    /// the order in which they are to follow each other. What was measured with an earlier one was taken, and is readable only
    /// when that key comes on the chain before its successor. A key that was presented again stands where it was presented last.
    #[must_use]
    pub fn requests(&self, gateway: &GatewayId, standing: &Standing) -> Vec<DeviceEnrolment> {
        let mut presented: BTreeMap<&DeviceId, Vec<&Used>> = BTreeMap::new();
        for claim in self.all.values() {
            if let Some(used) = &claim.used {
                presented.entry(&claim.device).or_default().push(used);
            }
        }
        let mut requests = Vec::new();
        for (device, mut keys) in presented {
            // The one that counts here is the last, also beside others of the same millisecond.
            let last = self.of_device(device).map(|(_, used)| used.key);
            keys.sort_by_key(|used| (used.at_ms, Some(used.key) == last));
            let registered = standing.devices.get(device);
            let is_registered = |used: &&Used| {
                registered.is_some_and(|device| device.keys().iter().any(|period| period.key == used.key))
            };
            // Whoever has been passed over stays out: to follow a later key, it would have to take its place.
            let passed = keys.iter().rposition(is_registered).map_or(0, |nth| nth + 1);
            let asked = &keys[passed..];
            let again = |nth: usize| asked[nth + 1..].iter().any(|later| later.key == asked[nth].key);
            let once = (0..asked.len()).filter(|nth| !again(*nth));
            requests.extend(once.map(|nth| DeviceEnrolment {
                device: device.clone(),
                key: asked[nth].key,
                gateway: gateway.clone(),
                proof: asked[nth].proof,
            }));
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        claim::{Evidence, tests::presented},
        standing::tests::{cuff, device},
    };
    use record::{canonical::Digest, ids::NetworkId, signature::SigningKey};

    #[test]
    fn every_key_that_was_presented_is_asked_for_until_the_chain_has_a_later_one() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (network, home) = (NetworkId(Digest::ZERO), "home-1".parse().expect("good"));
        let cuff = cuff();
        let keys = [1, 2, 3].map(|_| SigningKey::random());
        let present = |key: &SigningKey, at_ms| {
            let (claim, _) = Claims::make(folder.path(), (cuff.clone(), None), (at_ms, 500)).expect("makes");
            let text = presented(&network, &cuff, key, "pw");
            Claims::burn(
                folder.path(),
                &claim.id,
                (&network, &home),
                (&text, Evidence::Login, at_ms),
            )
            .expect("in time");
        };
        let asked = |standing: &Standing| {
            let claims = Claims::load(folder.path()).expect("reads");
            let requests = claims.requests(&home, standing);
            assert!(requests.iter().all(|request| request.is_proven(&network)));
            requests.iter().map(|request| request.key).collect::<Vec<_>>()
        };
        let [first, second, third] = keys.each_ref().map(SigningKey::public);
        let nobody = Standing::default();
        present(&keys[0], 1_000);
        present(&keys[1], 2_000);
        assert_eq!(asked(&nobody), [first, second]);
        present(&keys[0], 3_000);
        assert_eq!(asked(&nobody), [second, first], "it has its first key again");
        present(&keys[2], 4_000);
        assert_eq!(asked(&nobody), [second, first, third]);
        let has = |key| Standing {
            revoked: None,
            devices: [(cuff.clone(), device(key, None))].into(),
        };
        assert_eq!(asked(&has(&second)), [first, third]);
        assert_eq!(asked(&has(&first)), [third], "the one that was passed over stays out");
        assert_eq!(asked(&has(&third)), []);
        let strange = SigningKey::random().public();
        assert_eq!(
            asked(&has(&strange)),
            [second, first, third],
            "listed before it was claimed"
        );
    }
}

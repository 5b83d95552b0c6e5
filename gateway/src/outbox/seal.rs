//! Readings become a sealed bundle and its signed commitment before anything touches the disk.

use ledger::admission::MatchedSubmission;
use record::{
    bundle::{Bundle, Entry, SealError, SealedBundle, SubjectKey},
    gaps::{GapReport, Missing, SignedGapReport, VERSION},
    ids::{BundleId, DeviceId, GatewayId, NetworkId},
    reading::SignedReading,
    signature::SigningKey,
};
use serde_bytes::ByteBuf;

/// Bytes of messages in one bundle, at most: with the entries' framing they stay below the largest padding class.
pub(super) const BUNDLE_MESSAGE_BYTES_MAX: usize = 900_000;

/// Who seals, for which network, and to which key what is not believed.
#[derive(Clone, Debug)]
pub struct Sealer {
    /// The network that commitments are meant for.
    pub network: NetworkId,
    /// This gateway.
    pub gateway: GatewayId,
    /// The key it signs commitments with.
    pub key: SigningKey,
    /// The key that quarantined payloads are sealed to.
    pub quarantine: SubjectKey,
}

/// A sealed bundle, ready to be sent.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) bundle: BundleId,
    pub(super) readings: u32,
    pub(super) submission: Vec<u8>,
}

impl Sealer {
    /// Seals readings of one subject, and what is missing of its devices, and signs the commitment to them.
    ///
    /// # Errors
    /// [`SealError`]: too many bytes, or a key that cannot be sealed to.
    pub(super) fn seal(
        &self,
        key: &SubjectKey,
        (entries, gaps): (Vec<Entry>, Vec<SignedGapReport>),
        now_ms: i64,
    ) -> Result<Sealed, SealError> {
        let author = (&self.network, &self.gateway, &self.key);
        let bundle = Bundle::new(entries).with_gaps(gaps);
        let submission = MatchedSubmission::seal(author, (key, &bundle), now_ms)?;
        Ok(Sealed {
            bundle: submission.commitment().bundle,
            readings: submission.commitment().count,
            submission: submission.encode(),
        })
    }

    /// Signs what is missing of a device.
    pub(super) fn report(&self, device: DeviceId, missing: Missing, at_ms: i64) -> SignedGapReport {
        let report = GapReport {
            v: VERSION,
            network: self.network,
            gateway: self.gateway.clone(),
            device,
            at_ms,
            missing,
        };
        report.sign(&self.key)
    }

    /// Seals a message that is not believed; `None` if there is none, or it is larger than a reading may be.
    pub(super) fn seal_quarantined(&self, message: &[u8], received_ms: i64) -> Option<ByteBuf> {
        if message.is_empty() {
            return None;
        }
        let reading = SignedReading::receive(message).ok()?;
        let bundle = Bundle::new(vec![Entry::new(received_ms, reading)]);
        let sealed = SealedBundle::seal(&self.network, &self.gateway, &self.quarantine, &bundle)
            .expect("the key was tried at start and one message fits in a bundle");
        Some(ByteBuf::from(sealed.encode()))
    }
}

/// Whether a key can be sealed to: not every 32 bytes are a usable point.
#[must_use]
pub fn can_seal_to(key: &SubjectKey) -> bool {
    use record::canonical::Digest;
    let author = "probe".parse().expect("a good name");
    SealedBundle::seal(&NetworkId(Digest::ZERO), &author, key, &Bundle::new(Vec::new())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::bundle::{Category, SubjectSecret};

    #[test]
    fn a_point_of_small_order_cannot_be_sealed_to() {
        let (_, good) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        assert!(can_seal_to(&good));
        assert!(!can_seal_to(&SubjectKey {
            public: vec![0; 32],
            ..good
        }));
    }
}

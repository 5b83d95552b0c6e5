//! The engine's ed25519 votes under one rule: a vote that counts here counts in a receipt, on any verifier.
//!
//! The engine checks signatures by ZIP-215, which lets pass what strict verifiers refuse (points with a torsion part). One
//! validator could then sign so that blocks become final and their receipts hold nowhere. Here each signature passes
//! the strict check of [`PublicKey::verify_raw`] or is none; whoever sends another is shut out.

use std::sync::Arc;

use commonware_codec::Read;
use commonware_consensus::simplex::{scheme::Namespace, types::Subject};
use commonware_cryptography::{
    Digest,
    certificate::{
        AssemblyError, Attestation, Membership, Namespace as _, Scheme as CertificateScheme, Subject as _,
        Verification, Verifier, verify_then_assemble,
    },
    ed25519::{
        self,
        certificate::{Certificate, Generic},
    },
};
use commonware_parallel::Strategy;
use commonware_utils::{
    N3f1, Participant, TryCollect as _, Widen as _,
    iter::NonEmpty,
    ordered::{Quorum as _, Set},
};
use ledger::proof::{self, ValidatorSet};
use rand_core::CryptoRng;
use record::signature::{PublicKey, Signature, SigningKey};

use super::{
    codec::{engine_key, engine_signer},
    fence::Fence,
};

/// The committee's votes; made with a key if it is a validator's, only checked otherwise.
#[derive(Clone, Debug)]
pub struct Scheme {
    generic: Generic<Namespace>,
    /// The committee in the ledger's type, in the order of the participants.
    keys: Arc<[PublicKey]>,
    fence: Fence,
}

fn participants(committee: &ValidatorSet) -> Set<ed25519::PublicKey> {
    let keys = committee.validators.iter().map(engine_key);
    keys.try_collect().expect("a committee has distinct validators")
}

impl Scheme {
    /// The votes of a committee, only checked.
    ///
    /// # Panics
    /// Never for a committee of the ledger: its validators differ from each other.
    #[must_use]
    pub fn verifier(committee: &ValidatorSet) -> Self {
        let namespace = proof::vote_namespace(&committee.network);
        Self {
            generic: Generic {
                participants: participants(committee),
                signer: None,
                namespace: Namespace::derive(&namespace),
            },
            keys: committee.validators.clone().into(),
            fence: Fence::shut(),
        }
    }

    /// The votes of a committee: made with `key`, as far as the fence permits, if it belongs to one of its validators.
    ///
    /// # Panics
    /// Never for a committee of the ledger: its validators differ from each other.
    #[must_use]
    pub fn signer(committee: &ValidatorSet, key: &SigningKey, fence: Fence) -> Self {
        let namespace = proof::vote_namespace(&committee.network);
        let verifier = Self::verifier(committee);
        match Generic::signer(&namespace, participants(committee), engine_signer(key)) {
            Some(generic) => Self {
                generic,
                fence,
                ..verifier
            },
            None => verifier,
        }
    }

    /// The key of a participant, in the ledger's type.
    #[must_use]
    pub fn key(&self, participant: Participant) -> Option<PublicKey> {
        self.keys.get(usize::from(participant)).copied()
    }

    fn is_strictly_signed<D: Digest>(
        &self,
        subject: &Subject<'_, D>,
        signer: Participant,
        by: &ed25519::Signature,
    ) -> bool {
        let (Some(key), Ok(signature)) = (self.key(signer), <[u8; 64]>::try_from(by.as_ref())) else {
            return false;
        };
        let message = commonware_utils::union_unique(subject.namespace(&self.generic.namespace), &subject.message());
        key.verify_raw(&message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl Verifier for Scheme {
    type Subject<'a, D: Digest> = Subject<'a, D>;
    type Faults = N3f1;
    type PublicKey = ed25519::PublicKey;
    type Certificate = Certificate;

    fn verify_certificate<R, D>(
        &self,
        _: &mut R,
        subject: Subject<'_, D>,
        certificate: &Certificate,
        _: &impl Strategy,
    ) -> bool
    where
        R: CryptoRng,
        D: Digest,
    {
        let participants = &self.generic.participants;
        let (signers, signatures) = (&certificate.signers, &certificate.signatures);
        let quorum = participants.quorum::<N3f1>().widen();
        signers.len() == participants.len()
            && signers.count() == signatures.len()
            && signers.count() >= quorum
            && signers.iter().zip(signatures).all(|(signer, signature)| {
                signature
                    .get()
                    .is_some_and(|signature| self.is_strictly_signed(&subject, signer, signature))
            })
    }

    /// Strict checks are made one by one: a batch would let torsion cancel out.
    fn is_batchable() -> bool {
        false
    }

    fn max_certificate_size(participants: u32) -> usize {
        Generic::<Namespace>::max_certificate_size(participants)
    }

    fn certificate_codec_config(&self) -> <Certificate as Read>::Cfg {
        self.generic.certificate_codec_config()
    }

    fn certificate_codec_config_unbounded() -> <Certificate as Read>::Cfg {
        Generic::<Namespace>::certificate_codec_config_unbounded()
    }
}

impl CertificateScheme for Scheme {
    type Signature = ed25519::Signature;

    fn me(&self) -> Option<Membership> {
        self.generic.signer_index().map(Membership::Signer)
    }

    fn participants(&self) -> &Set<ed25519::PublicKey> {
        &self.generic.participants
    }

    fn sign<D: Digest>(&self, subject: Subject<'_, D>) -> Option<Attestation<Self>> {
        let round = match &subject {
            Subject::Notarize { proposal } | Subject::Finalize { proposal } => proposal.round,
            Subject::Nullify { round } => *round,
        };
        if !self.fence.permits(round) {
            return None;
        }
        self.generic.sign(subject)
    }

    fn verify_attestation<R, D>(
        &self,
        _: &mut R,
        subject: Subject<'_, D>,
        attestation: &Attestation<Self>,
        _: &impl Strategy,
    ) -> bool
    where
        R: CryptoRng,
        D: Digest,
    {
        attestation
            .signature
            .get()
            .is_some_and(|signature| self.is_strictly_signed(&subject, attestation.signer, signature))
    }

    fn optimistic_assemble<'a, R, D, I, J>(
        &self,
        rng: &mut R,
        subject: Subject<'_, D>,
        pending: I,
        verified: J,
        strategy: &impl Strategy,
    ) -> Result<Certificate, Verification<Self>>
    where
        R: CryptoRng,
        D: Digest,
        I: IntoIterator<Item = Attestation<Self>>,
        I::IntoIter: ExactSizeIterator + Send,
        J: IntoIterator<Item = &'a Attestation<Self>>,
        J::IntoIter: Send,
    {
        verify_then_assemble::<_, _, D, _, _>(self, rng, subject, pending, verified, strategy)
    }

    fn assemble<I>(&self, attestations: NonEmpty<I>, _: &impl Strategy) -> Result<Certificate, AssemblyError>
    where
        I: Iterator<Item = Attestation<Self>> + Send,
    {
        self.generic.assemble(attestations)
    }

    fn is_attributable() -> bool {
        Generic::<Namespace>::is_attributable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::{
        EngineBlock, EngineDigest,
        tests::{child, founded},
    };
    use commonware_codec::{Copying, DecodeExt as _};
    use commonware_consensus::{
        CertifiableBlock as _,
        simplex::types::{Finalization, Finalize, Proposal},
    };
    use commonware_cryptography::{Digestible as _, Verifier as _};
    use commonware_parallel::Sequential;
    use commonware_utils::{non_empty, sys_rng};
    use curve25519_dalek::{EdwardsPoint, Scalar, constants::EIGHT_TORSION};
    use ledger::block::Block;
    use sha2::{Digest as _, Sha512};

    /// A signature that ZIP-215 takes and a strict verifier does not: its R has a torsion part.
    fn torsioned(key: &SigningKey, message: &[u8]) -> ed25519::Signature {
        let expanded: [u8; 64] = Sha512::digest(key.secret_bytes().as_slice()).into();
        let mut clamped: [u8; 32] = expanded[..32].try_into().expect("half of 64");
        clamped[0] &= 248;
        clamped[31] = (clamped[31] & 127) | 64;
        let (secret, nonce) = (Scalar::from_bytes_mod_order(clamped), Scalar::from(7_u64));
        let point = (EdwardsPoint::mul_base(&nonce) + EIGHT_TORSION[1]).compress();
        let hash: [u8; 64] = Sha512::new()
            .chain_update(point.as_bytes())
            .chain_update(key.public().as_bytes())
            .chain_update(message)
            .finalize()
            .into();
        let s = nonce + Scalar::from_bytes_mod_order_wide(&hash) * secret;
        let bytes = [*point.as_bytes(), s.to_bytes()].concat();
        ed25519::Signature::decode(Copying(bytes.as_slice())).expect("64 bytes")
    }

    fn proposal(block: &Block) -> Proposal<EngineDigest> {
        let block = EngineBlock::new(block.clone());
        let context = block.context();
        Proposal::new(context.round, context.parent.0, block.digest())
    }

    #[test]
    fn a_vote_that_holds_in_no_receipt_is_no_vote() {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let genesis = founded(&keys);
        let block = child(&genesis, &Block::genesis(&genesis), vec![]);
        let message = proof::vote_message(&block.header);
        let liar = torsioned(&keys[0], &message);
        // The engine's own check lets it pass.
        let namespace = [proof::vote_namespace(&genesis.network()).as_slice(), b"_FINALIZE"].concat();
        assert!(engine_key(&keys[0].public()).verify(
            &namespace,
            &message[namespace.len() + varint(&namespace)..],
            &liar
        ));

        let schemes: Vec<_> = {
            let set = ValidatorSet::of(&genesis);
            keys.iter()
                .map(|key| Scheme::signer(&set, key, Fence::open()))
                .collect()
        };
        let sign = |scheme| Finalize::sign(scheme, proposal(&block)).expect("a validator signs");
        let honest: Vec<_> = schemes[1..].iter().map(sign).collect();
        let mut lie = sign(&schemes[0]);
        lie.attestation.signature = liar.into();
        let (mut rng, scheme) = (sys_rng(), &schemes[1]);
        assert!(honest.iter().all(|vote| vote.verify(&mut rng, scheme, &Sequential)));
        assert!(!lie.verify(&mut rng, scheme, &Sequential));
        let mixed = [lie, honest[0].clone(), honest[1].clone()];
        let certificate = |votes: &[Finalize<Scheme, EngineDigest>]| {
            Finalization::from_finalizes(scheme, non_empty![@votes.iter()], &Sequential).expect("a quorum")
        };
        assert!(certificate(&honest).verify(&mut rng, scheme, &Sequential));
        assert!(!certificate(&mixed).verify(&mut rng, scheme, &Sequential));
    }

    /// Bytes of the length in front of the namespace.
    fn varint(namespace: &[u8]) -> usize {
        if namespace.len() < 128 { 1 } else { 2 }
    }
}

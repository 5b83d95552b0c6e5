//! The engine's votes as the ledger proves them to a third party.

use commonware_consensus::simplex::types;
use ledger::proof::{Finalization, Vote};
use record::signature::Signature;

use super::{codec::EngineDigest, scheme::Scheme};

/// The votes in the ledger's form, ordered by validator; `None` if a signature or key is malformed, which the engine
/// never lets through.
#[must_use]
pub fn in_ledger_form(
    scheme: &Scheme,
    finalization: &types::Finalization<Scheme, EngineDigest>,
) -> Option<Finalization> {
    let certificate = &finalization.certificate;
    let votes = certificate
        .signers
        .iter()
        .zip(&certificate.signatures)
        .map(|(signer, signature)| {
            let signature: [u8; 64] = signature.get()?.as_ref().try_into().ok()?;
            Some(Vote {
                validator: scheme.key(signer)?,
                signature: Signature::from_bytes(signature),
            })
        });
    let mut votes: Vec<Vote> = votes.collect::<Option<_>>()?;
    votes.sort_by_key(|vote| vote.validator);
    Some(Finalization { votes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::{
        EngineBlock,
        tests::{child, commitment, founded},
    };
    use commonware_consensus::{
        CertifiableBlock as _,
        simplex::types::{Finalize, Proposal},
        types::View,
    };
    use commonware_cryptography::Digestible as _;
    use commonware_parallel::Sequential;
    use commonware_utils::non_empty;
    use ledger::{
        block::Block,
        genesis::Genesis,
        proof::{Receipt, ValidatorSet},
    };
    use proptest::prelude::*;
    use record::signature::SigningKey;

    /// Votes of the first `voters` keys on the block, made by the engine itself.
    fn voted(genesis: &Genesis, keys: &[SigningKey], voters: usize, block: &EngineBlock) -> Finalization {
        let context = block.context();
        let proposal = Proposal::new(context.round, context.parent.0, block.digest());
        let schemes: Vec<_> = keys.iter().map(|key| Scheme::of(genesis, Some(key))).collect();
        let votes: Vec<_> = schemes[..voters]
            .iter()
            .map(|s| Finalize::sign(s, proposal.clone()).expect("a validator signs"))
            .collect();
        let engine = types::Finalization::from_finalizes(&schemes[0], non_empty![@votes.iter()], &Sequential);
        in_ledger_form(&schemes[0], &engine.expect("a quorum")).expect("well formed")
    }

    struct Voted {
        block: Block,
        finalization: Finalization,
        validators: ValidatorSet,
    }

    fn sample() -> Voted {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let genesis = founded(&keys);
        let block = child(
            &genesis,
            &Block::genesis(&genesis),
            vec![commitment(&genesis, &SigningKey::random())],
        );
        let finalization = voted(&genesis, &keys, 3, &EngineBlock::new(block.clone()));
        Voted {
            block,
            finalization,
            validators: ValidatorSet::of(&genesis),
        }
    }

    #[test]
    fn the_engines_own_votes_pass_the_ledgers_check() {
        let Voted {
            block,
            finalization,
            validators,
        } = sample();
        assert_eq!(finalization.check(&block.header, &validators), Ok(3));
        assert!(block.header.view > u64::from(u8::MAX) && View::new(block.header.view) > View::zero());
        let receipt = Receipt::of(&block, 0, vec![], finalization)
            .expect("a commitment")
            .to_json();
        let verified = Receipt::verify(&receipt, &validators).expect("holds");
        assert_eq!((verified.votes(), verified.header()), (3, &block.header));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn any_changed_byte_of_a_receipt_makes_it_fail(at: usize, with in 1u8..=255) {
            static SAMPLE: std::sync::LazyLock<(String, ValidatorSet)> = std::sync::LazyLock::new(|| {
                let Voted { block, finalization, validators } = sample();
                (Receipt::of(&block, 0, vec![], finalization).expect("a commitment").to_json(), validators)
            });
            let mut bytes = SAMPLE.0.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(Receipt::verify(&text, &SAMPLE.1).is_err());
            }
        }
    }
}

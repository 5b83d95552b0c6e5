//! The engine's votes as the ledger proves them to a third party.

use commonware_codec::{Copying, DecodeExt as _};
use commonware_consensus::{
    simplex::types,
    types::{Epoch, Round, View},
};
use commonware_cryptography::{
    certificate::{Attestation, Scheme as _},
    ed25519,
};
use commonware_parallel::Sequential;
use commonware_utils::{iter::NonEmpty, ordered::Quorum as _};
use ledger::{
    block::Header,
    proof::{Finalization, Vote},
};
use record::signature::Signature;

use super::{
    codec::{EngineDigest, engine_digest, engine_key},
    scheme::Scheme,
};

/// The votes in the ledger's form, ordered by validator; `None` if they are about another round than the header's own (a
/// block at the end of an epoch may be proposed again, and no receipt can say so: its successor's votes prove it), or if
/// a signature or key is malformed, which the engine never lets through.
#[must_use]
pub fn in_ledger_form(
    scheme: &Scheme,
    header: &Header,
    finalization: &types::Finalization<Scheme, EngineDigest>,
) -> Option<Finalization> {
    if finalization.proposal != proposal_of(header) {
        return None;
    }
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

fn proposal_of(header: &Header) -> types::Proposal<EngineDigest> {
    let round = Round::new(Epoch::new(header.epoch), View::new(header.view));
    types::Proposal::new(round, View::new(header.parent_view), engine_digest(&header.digest()))
}

/// The ledger's votes on a header in the engine's form; `None` if they are no quorum of the committee.
#[must_use]
pub fn in_engine_form(
    scheme: &Scheme,
    header: &Header,
    finalization: &Finalization,
) -> Option<types::Finalization<Scheme, EngineDigest>> {
    let vote = |vote: &Vote| {
        let signature = ed25519::Signature::decode(Copying(vote.signature.as_bytes().as_slice())).ok()?;
        Some(types::Finalize {
            proposal: proposal_of(header),
            attestation: Attestation {
                signer: scheme.participants().index(&engine_key(&vote.validator))?,
                signature: signature.into(),
            },
        })
    };
    let votes: Vec<_> = finalization.votes.iter().map(vote).collect::<Option<_>>()?;
    let all = NonEmpty::try_new(votes.iter())?;
    types::Finalization::from_finalizes(scheme, all, &Sequential).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::{
        codec::{
            EngineBlock,
            tests::{child, commitment, founded},
        },
        fence::Fence,
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
        handover::Committees,
        proof::{Receipt, ValidatorSet},
    };
    use proptest::prelude::*;
    use record::signature::SigningKey;

    /// Votes of the first `voters` keys on the block, made by the engine itself.
    fn voted(genesis: &Genesis, keys: &[SigningKey], voters: usize, block: &EngineBlock) -> Finalization {
        let context = block.context();
        let proposal = Proposal::new(context.round, context.parent.0, block.digest());
        let set = ValidatorSet::of(genesis);
        let schemes: Vec<_> = keys
            .iter()
            .map(|key| Scheme::signer(&set, key, Fence::open()))
            .collect();
        let votes: Vec<_> = schemes[..voters]
            .iter()
            .map(|s| Finalize::sign(s, proposal.clone()).expect("a validator signs"))
            .collect();
        let engine = types::Finalization::from_finalizes(&schemes[0], non_empty![@votes.iter()], &Sequential);
        in_ledger_form(&schemes[0], &block.block().header, &engine.expect("a quorum")).expect("well formed")
    }

    struct Voted {
        block: Block,
        finalization: Finalization,
        genesis: Genesis,
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
            genesis,
        }
    }

    #[test]
    fn the_engines_own_votes_pass_the_ledgers_check() {
        let Voted {
            block,
            finalization,
            genesis,
        } = sample();
        assert_eq!(finalization.check(&block.header, &ValidatorSet::of(&genesis)), Ok(3));
        assert!(block.header.view > u64::from(u8::MAX) && View::new(block.header.view) > View::zero());
        let receipt = Receipt::of(&block, 0, vec![], finalization)
            .expect("a commitment")
            .to_json();
        let verified = Receipt::verify(&receipt, &Committees::founding(&genesis)).expect("holds");
        assert_eq!((verified.votes(), verified.header()), (3, &block.header));
    }

    #[test]
    fn votes_go_into_the_engines_form_and_back() {
        let Voted {
            block,
            finalization,
            genesis,
        } = sample();
        let scheme = Scheme::verifier(&ValidatorSet::of(&genesis));
        let together = in_engine_form(&scheme, &block.header, &finalization).expect("a quorum");
        assert_eq!(
            in_ledger_form(&scheme, &block.header, &together),
            Some(finalization.clone())
        );
        let mut thin = finalization.clone();
        thin.votes.pop();
        assert!(in_engine_form(&scheme, &block.header, &thin).is_none());
        let mut again = block.header.clone();
        again.view += 1;
        assert_eq!(
            in_ledger_form(&scheme, &again, &together),
            None,
            "votes on a second proposal of a block are in no receipt"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn any_changed_byte_of_a_receipt_makes_it_fail(at: usize, with in 1u8..=255) {
            static SAMPLE: std::sync::LazyLock<(String, Committees)> = std::sync::LazyLock::new(|| {
                let Voted { block, finalization, genesis } = sample();
                (Receipt::of(&block, 0, vec![], finalization).expect("a commitment").to_json(), Committees::founding(&genesis))
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

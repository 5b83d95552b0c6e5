//! Seeds that failed once, each kept with what it found.

use crate::seeds::live;

/// They failed once: a read that failed was taken for a damaged vote journal, which was removed; the validator then had to
/// hear from all others, and the fourth was a silent liar.
#[test]
fn seeds_85_and_314_in_which_a_failing_read_cost_a_validator_its_votes() {
    for seed in [85, 314] {
        live(seed);
    }
}

/// It failed once: a liar's vote made a quorum with the two that began first, and the third, with no votes to remember, waited
/// for the liar to tell it that it had not voted. A founder's first start asks nobody now.
#[test]
fn seed_879_in_which_a_liar_kept_the_network_from_beginning() {
    live(879);
}

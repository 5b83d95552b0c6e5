//! What is checked with the validators' public keys alone, from files: receipts and certificates of erasure.

use std::path::Path;

use ledger::{
    erasure::{CERTIFICATE_BYTES_MAX, Certificate},
    handover::{Committees, HANDOVERS_BYTES_MAX, Handovers},
    proof::{RECEIPT_BYTES_MAX, Receipt},
    transaction::PrivateHalf,
};

use super::read;

/// Checks a receipt and says what was checked.
pub(super) fn receipt(receipt: &Path, validators: &Path) -> anyhow::Result<String> {
    let text = read(receipt, RECEIPT_BYTES_MAX)?;
    let committees = committees(validators)?;
    let verified = Receipt::verify(&text, &committees)?;
    let header = verified.header();
    let set = committees.at(verified.voted_in());
    let (votes, of, quorum) = (verified.votes(), set.validators.len(), set.quorum());
    Ok(format!(
        "the receipt holds\n\
         network     {}\n\
         bundle      {}\n\
         commitment  its Merkle path leads to the transactions root of the block\n\
         block       height {}, digest {}, proposed by {}\n\
         votes       {votes} of {of} validators, each signature checked; {quorum} are needed",
        set.network,
        verified.bundle(),
        header.height,
        header.digest(),
        header.leader,
    ))
}

/// Checks a certificate of erasure and says what was checked.
pub(super) fn erasure(certificate: &Path, validators: &Path) -> anyhow::Result<String> {
    let text = read(certificate, CERTIFICATE_BYTES_MAX)?;
    let committees = committees(validators)?;
    let verified = Certificate::verify(&text, &committees)?;
    let words = verified.confirmed.iter().map(|word| {
        let half = match word.private_half {
            PrivateHalf::Destroyed => "the private half was there and is destroyed",
            PrivateHalf::NeverHeld => "the private half was never there",
        };
        format!("\nconfirmed   {} at height {}: {half}", word.validator, word.height)
    });
    Ok(format!(
        "the certificate of erasure holds\n\
         network     {}\n\
         key         {}\n\
         erased      by {}, at height {}\n\
         payloads    {}, digest of their identifiers {}{}",
        committees.network(),
        verified.key,
        verified.custodian,
        verified.header.height,
        verified.payloads,
        verified.cids,
        words.collect::<String>(),
    ))
}

fn committees(validators: &Path) -> anyhow::Result<Committees> {
    let handovers: Handovers = serde_json::from_str(&read(validators, HANDOVERS_BYTES_MAX)?).map_err(|error| {
        anyhow::anyhow!(
            "{} is not what /api/v1/chain/validators gives: {error}",
            validators.display()
        )
    })?;
    Ok(Committees::of(handovers)?)
}

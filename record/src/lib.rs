//! What is measured: readings, observations, sealed bundles, identifiers.
//!
//! The pure half of the house: no tokio, no I/O, no clock. In the order a reading meets them:
//!
//! 1. [`ids`] names of devices, gateways, organisations, people; [`signature`] who vouches for bytes.
//! 2. [`topic`] where a device's message comes in; [`reading`] the message: bytes -> [`reading::SignedReading`] ->
//!    [`reading::Reading`]; [`transit`] the same, sealed to its gateway so that no broker reads it.
//! 3. [`vital`] the LOINC codes, UCUM units and plausible limits we know; [`decimal`] their exact numbers.
//! 4. [`clock`] when it was measured, if the device has no wall clock; [`observation`] a reading in clinical terms.
//! 5. [`gaps`] which readings never came, as the gateway reports it; [`bundle`] readings and reports of one subject and
//!    category, sealed to the subject's key and opened again; [`document`] the same for a large record, as a stream.
//! 6. [`canonical`] the one encoding that is hashed, and Algorithm 1; [`merkle`] inclusion in a batch.
//! 7. [`fhir`] the shape the outside sees.

pub mod ids;

pub mod signature;

pub mod reading;
pub mod topic;

mod padding;
pub mod transit;

pub mod decimal;
pub mod vital;

pub mod clock;

pub mod observation;

pub mod gaps;

pub mod bundle;

pub mod document;

pub mod canonical;
pub mod merkle;

pub mod fhir;

//! How it is agreed: transactions, blocks, validity policy, consent, proofs.
//!
//! The pure half of the fog: no tokio, no I/O, no clock. In the order a commitment meets them:
//!
//! 1. [`member`] organisations and their nodes; [`genesis`] who founded the network; [`document`] what is said of a large
//!    record; [`transaction`] what an author signs, and [`possession`] how a device's key proves itself.
//! 2. [`admission`] how a gateway hands over a bundle; [`policy`] the hash validation policy P and the nonce
//!    search (Algorithm 3).
//! 3. [`block`] Block -> VerifiedBlock -> FinalizedBlock, by its [`votes`].
//! 4. [`committee`] who votes in which epoch; [`device`] which of a device's keys counted when; [`register`] who may do what;
//!    [`state`] a finalized block applied to it, equally on every node; [`refused`] why something has no effect.
//! 5. [`consent`] grants in force -> Permit.
//! 6. [`proof`] what a third party checks: Merkle inclusion and two thirds of the votes ([`quorum`]); [`handover`] whose votes count;
//!    [`erasure`] the proof that every node holds nothing of a key any more.
//! 7. [`agreement`] what nodes say of their chains, compared: the majority, and who stands outside it (Algorithm 2).
//! 8. [`holding`] what a node proves of the payloads that it has.
//! 9. [`light`] what a node without a chain is handed, and how it checks it.

pub mod document;
pub mod genesis;
pub mod member;
pub mod possession;
pub mod transaction;

pub mod admission;

pub mod policy;

pub mod block;
pub mod votes;

pub mod committee;
pub mod device;
pub mod refused;
pub mod register;
pub mod state;

pub mod consent;

pub mod handover;
pub mod proof;
pub mod quorum;

pub mod erasure;

pub mod agreement;
pub mod holding;

pub mod light;

//! The fog: stores, agrees, answers.
//!
//! Doors open inwards only. From the street inwards, and along the line of one reading:
//!
//! 1. [`command`] the command line; [`audit`] a whole chain compared with the others', for people; [`members`] who may vote,
//!    changed by voices; [`edge`] an organisation's gateways and devices; [`replace`] a lost node rebuilt from its peers; [`node`] the composition, the only file that names
//!    every room; [`observer`] another one, without chain and vote; [`config`] the one file of settings.
//! 2. [`http`] the outer door: one file a resource, who asks, how it fails. [`consensus`] the engine room: propose, verify,
//!    finalize.
//! 3. [`follow`] headers, state and commitments from nodes that are not believed, for an observer. [`possession`] who holds what:
//!    proven, compared with the chain, let go of. [`erasure`] what the chain says is erased, erased here, and confirmed. [`recovery`]
//!    compare with the others, read everything again, mend it.
//! 4. [`intake`] check, keep, queue. [`documents`] large records, in and out. [`query`] permitted questions, the only way to records. [`projection`] from the chain
//!    into the index. [`disclosure`] what a member without a chain may learn of it. [`retention`] every payload that the chain names, held here. [`turnstile`] how many of one name may be
//!    in a room.
//! 5. [`mempool`] what waits for a block, the one turn of the line; [`proofs`] what an observer keeps
//!    instead of a chain; [`chain`] finalized blocks and the state; [`vault`]
//!    payloads by content identifier; [`index`] searchable metadata; [`keyring`] the keys this node holds.
//! 6. [`telemetry`] what an operator sees. [`containment`] the only panics that do not end the process.
//!    [`decision`] a signed transaction, handed to the organisation's own node. [`space`] the room that is left on the disk.

pub mod audit;
pub mod command;
pub mod config;
pub mod edge;
pub mod members;
pub mod node;
pub mod observer;
pub mod replace;

pub mod consensus;
pub mod http;

pub mod follow;
pub mod possession;

pub mod erasure;

pub mod recovery;

pub mod disclosure;
pub mod documents;
pub mod intake;
pub mod projection;
pub mod query;
pub mod retention;
pub mod turnstile;

pub mod chain;
pub mod index;
pub mod keyring;
pub mod mempool;
pub mod proofs;
pub mod vault;

pub mod containment;
pub mod decision;
pub mod space;
pub mod telemetry;

//! Everything on loopback as real processes: the one-command demo and the harness of the tests.
//!
//! A run, in the order it happens:
//!
//! 1. [`command`] reads what was asked for and refuses what cannot be done; [`config`], [`ports`] and [`folder`] say why.
//!    [`hardening`] sets what this process and all it starts have in common; [`interruption`] tells when it shall stop.
//! 2. [`household`] makes synthetic patients and their devices, [`identities`] keys and certificates; [`network`] founds a
//!    network of them and writes each process's configuration.
//! 3. [`run`] starts the [`processes`], each kept alive by [`children`] and ended by its [`lifeline`]; [`enrolment`] puts on
//!    the chain what it must know before anything is measured.
//! 4. [`monitor`] looks at all of it over [`client`] and [`memory`]; [`status`] and [`banner`] show it, [`report`] keeps it.
//! 5. [`ending`] waits until everything acknowledged is final; [`agreement`] compares the nodes, [`audit`] walks the chain,
//!    and [`promises`] compares what was acknowledged with what is there.
//!
//! [`mod@bench`] measures fog nodes of such networks at several lengths of history.
//! [`harness`] is the same run, started and asked by a test.

pub mod command;
pub mod fault;
pub mod hardening;
pub mod interruption;

pub mod config;
pub mod folder;
pub mod ports;

pub mod household;
pub mod identities;
pub mod network;

pub mod children;
pub mod enrolment;
pub mod lifeline;
pub mod processes;
pub mod run;

pub mod banner;
pub mod client;
pub mod histogram;
pub mod memory;
pub mod monitor;
pub mod report;
pub mod reporting;
pub mod status;

pub mod agreement;
pub mod audit;
pub mod ending;
pub mod promises;

pub mod bench;

pub mod harness;

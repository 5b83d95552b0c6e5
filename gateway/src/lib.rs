//! The edge: MQTT in, sealed bundles out.
//!
//! One reading, followed forwards:
//!
//! 1. [`mqtt`] receives it from the device: embedded broker or a client of an outside one; both hand it to the one sink.
//! 2. [`transit`] opens what a device sealed to this gateway. [`intake`] believes it or not: size, signature, topic, plausibility; [`directory`] says who measures for whom as of now:
//!    [`enrolment`] what the home listed, [`claim`] what a new device presented,
//!    [`assignment`] who uses a shared device, [`standing`] what the chain says of keys
//!    and revocations, which [`follow`] learns from the fog nodes.
//! 3. [`outbox`] seals it to the subject's key and makes it durable; only then the device's PUBACK leaves.
//! 4. [`uplink`] submits the sealed bundle to fog nodes until it holds a receipt it has verified itself; only then the
//!    outbox forgets it.
//!
//! What is durable may also be shown in its home, if the home wishes: [`newest`] holds it, [`homeassistant`] shows it.
//!
//! [`gateway`] composes the rooms, [`config`] describes them, [`http`] shows them, [`telemetry`] carries logs and metrics,
//! [`secret`] reads keys and passwords, [`login`] what a client of a broker logs in with, [`kept`] writes small files that must last, [`port`] listens,
//! [`spelling`] says what a mistyped name was perhaps meant to be, [`terminal`] what must not reach a terminal,
//! [`command`] is the process,
//! [`resync`] what hands it readings from a file.

pub mod command;

pub mod resync;

pub mod config;
pub mod gateway;

pub mod http;

pub mod homeassistant;

pub mod mqtt;

pub mod intake;

pub mod newest;

pub mod follow;
pub mod uplink;

pub mod directory;

pub mod transit;

pub mod assignment;
pub mod claim;
pub mod enrolment;
pub mod outbox;
pub mod standing;

pub mod kept;
pub mod login;
pub mod port;
pub mod secret;
pub mod spelling;
pub mod terminal;
pub mod tls;

pub mod telemetry;

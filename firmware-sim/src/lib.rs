//! Home devices that replay real recordings over MQTT: a signal is measured, signed, numbered, sent until acknowledged.
//!
//! [`command`] reads the [`config`] and starts the fleet; each device owns its key, its boot counter, its journal of
//! unacknowledged readings and its one connection. [`signal`] is what they measure; [`fault`] is what they do wrong,
//! [`profile`] which of them do something else.
//! [`conformance`] judges what other people's devices send.

pub mod command;
pub mod config;
pub mod conformance;
pub mod device;
pub mod fault;
pub mod fleet;
pub mod profile;
pub mod signal;

pub use config::{Config, DeviceEntry};
pub use fleet::FleetError;
pub use signal::{Kind, Library, Message, Stream, UnknownRecording, default_recording, expected};

//! The bare way, as a measure for the gateway: a subscriber of Mosquitto that writes each message to a file, syncs, and then acknowledges.
//!
//! It has the gateway's durability and nothing else of it: no signature is checked, nothing is sealed, no repetition is known, and the
//! file is never read. Messages that came together are synced together, as in the gateway.

use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use rumqttc::{
    AckMode, AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, Publish, QoS, TlsConfiguration,
    Transport,
};

use super::publisher;
use crate::{command::on_runtime, fault::Fault, network::GATEWAY};

/// What this command is called.
pub(super) const COMMAND: &str = "bare-subscriber";
/// Messages under way to it, as the gateway asks for.
const RECEIVE_MAX: u16 = 256;
/// How long the first message of a sync waits for others: as long as in the gateway.
const LINGER: Duration = Duration::from_millis(5);

/// Subscribes, writes, syncs, acknowledges, and prints after each sync how many messages are durable.
#[derive(Debug, Parser)]
#[command(name = COMMAND)]
struct Arguments {
    #[arg(long)]
    host: String,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    certificate: PathBuf,
    #[arg(long)]
    private_key: PathBuf,
    /// Where messages are appended.
    #[arg(long)]
    file: PathBuf,
}

/// Runs until it is killed.
pub(super) fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    match crate::command::parsed::<Arguments>(arguments) {
        Ok(arguments) => crate::command::concluded(on_runtime(run(arguments)).map(|()| false)),
        Err(code) => code,
    }
}

async fn run(arguments: Arguments) -> Result<(), Fault> {
    let own = (arguments.certificate.as_path(), arguments.private_key.as_path());
    let tls = publisher::tls(&arguments.ca, Some(own))?;
    let mut options = MqttOptions::new("bare-subscriber", (arguments.host.as_str(), arguments.port));
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.into())))
        .set_ack_mode(AckMode::Manual)
        .set_receive_maximum(Some(RECEIVE_MAX))
        .set_max_packet_size(None)
        .set_request_channel_capacity(usize::from(RECEIVE_MAX) * 2);
    let (client, events) = AsyncClient::builder(options).build();
    let mut file = File::create(&arguments.file).map_err(Fault::file(&arguments.file))?;
    let (mut events, mut durable) = (std::pin::pin!(packets(events)), 0_u64);
    loop {
        let mut batch = Vec::new();
        match events.next().await {
            Some(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                let filter = format!("vitalfog/v1/{GATEWAY}/+/reading");
                // Without it nothing comes, and the benchmark says so.
                let _full = client.try_subscribe(filter, QoS::AtLeastOnce);
                say(durable);
            }
            Some(Ok(Event::Incoming(Incoming::Publish(message)))) => batch.push(message),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(Fault::Measure(format!("the bare subscriber is cut off: {error}"))),
            None => return Ok(()),
        }
        if batch.is_empty() {
            continue;
        }
        tokio::time::sleep(LINGER).await;
        while let Some(event) = events.next().now_or_never() {
            match event {
                Some(Ok(Event::Incoming(Incoming::Publish(message)))) => batch.push(message),
                Some(Ok(_)) => {}
                _ => return Err(Fault::Measure("the bare subscriber is cut off".to_owned())),
            }
        }
        let messages = batch.len() as u64;
        file = keep(file, &batch).map_err(Fault::file(&arguments.file))?;
        for message in &batch {
            // Its queue has room for all that may be under way.
            let _full = client.try_ack(message);
        }
        durable += messages;
        say(durable);
    }
}

fn packets(events: EventLoop) -> impl Stream<Item = Result<Event, ConnectionError>> {
    stream::unfold(events, |mut events| async move { Some((events.poll().await, events)) })
}

/// Each message with its length before it, and one sync for all of them.
fn keep(mut file: File, batch: &[Publish]) -> std::io::Result<File> {
    let mut bytes = Vec::new();
    for message in batch {
        bytes.extend_from_slice(&(message.payload.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&message.payload);
    }
    file.write_all(&bytes)?;
    file.sync_data()?;
    Ok(file)
}

fn say(durable: u64) {
    // Whoever started it reads it, or has ended.
    let _read = writeln!(std::io::stdout(), "{durable}");
}

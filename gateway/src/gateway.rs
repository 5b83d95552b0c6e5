//! The composition: opens each room in turn, hands each what it needs, and stops them in the reverse order.

use std::{fs, io, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    config::Prepared,
    http::{self, Sources},
    intake::Intake,
    mqtt::{self, Mqtt, presence::Presence},
    outbox::{self, Outbox},
    uplink::{self, Uplink},
};

/// Why a gateway does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder cannot be made.
    #[error("the folder {0} cannot be made: {1}")]
    Folder(String, io::Error),
    /// The spool cannot be opened.
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// Devices cannot reach it.
    #[error(transparent)]
    Mqtt(#[from] mqtt::Error),
    /// It cannot reach the fog.
    #[error(transparent)]
    Uplink(#[from] uplink::Error),
    /// Its status cannot be shown.
    #[error("http.listen {0}: {1}")]
    Http(SocketAddr, io::Error),
    /// A room ended by itself.
    #[error("{0} ended by itself")]
    Ended(&'static str),
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    outbox: Outbox,
    mqtt: Mqtt,
    uplink: Uplink,
    http: JoinHandle<()>,
}

impl Gateway {
    /// Starts everything; every port is bound when this returns.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start(prepared: Prepared, metrics: PrometheusHandle) -> Result<Self, Error> {
        let Prepared {
            config,
            sealer,
            enrolments,
            mqtt,
            network,
        } = prepared;
        make_folder(&config.data_dir)?;
        let listen = config.http.listen;
        let listener = TcpListener::bind(listen).await.map_err(|e| Error::Http(listen, e))?;
        let outbox = Outbox::open(config.outbox, config.quarantine, &config.data_dir, sealer)?;
        let devices = enrolments.len();
        let intake = Intake::new(config.gateway.clone(), enrolments, outbox.clone());
        let presence = Presence::of(intake.clone(), config.mqtt.silent_after());
        let mqtt = Mqtt::start(mqtt, intake, presence.clone()).await?;
        let uplink = Uplink::start(&config.uplink, network, outbox.clone())?;
        let sources = Sources {
            gateway: config.gateway,
            devices,
            connected: mqtt.connected(),
            presence,
            outbox: outbox.clone(),
            uplink: uplink.view(),
            metrics,
        };
        let http = tokio::spawn(http::serve(listener, sources));
        Ok(Self {
            outbox,
            mqtt,
            uplink,
            http,
        })
    }

    /// Resolves when a room has ended by itself: a gateway that is half alive must not go on.
    pub async fn failed(&mut self) -> Error {
        tokio::select! {
            () = self.mqtt.ended() => Error::Ended("mqtt"),
            ended = self.uplink.ended() => ended.map_or_else(Error::from, |()| Error::Ended("the outbox")),
            _ = &mut self.http => Error::Ended("http"),
        }
    }

    /// Takes no more messages, makes durable what was taken, and ends.
    pub async fn stop(self) {
        self.mqtt.stop();
        self.uplink.stop();
        self.outbox.stop().await;
        self.http.abort();
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Error::Folder(path.display().to_string(), e))
}

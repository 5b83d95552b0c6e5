//! The composition: opens each room in turn, hands each what it needs, and stops them in the reverse order.

use std::{io, net::SocketAddr};

use metrics_exporter_prometheus::PrometheusHandle;
use record::ids::NetworkId;
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    config::{Config, Prepared},
    directory::{self, Directory, Files, Places},
    enrolment::Enrolments,
    follow::{self, Following},
    homeassistant::{self, Export},
    http::{self, Sources},
    intake::Intake,
    kept,
    mqtt::{self, Mqtt, presence::Presence},
    outbox::{self, Outbox},
    port,
    standing::Standing,
    transit::{self, Transit},
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
    /// It cannot show values in the home.
    #[error(transparent)]
    Shown(#[from] homeassistant::Unusable),
    /// It cannot reach the fog.
    #[error(transparent)]
    Uplink(#[from] uplink::Error),
    /// Nobody could seal to it.
    #[error(transparent)]
    Transit(#[from] transit::Error),
    /// Its lists cannot be read.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// What it knows of the chain cannot be read.
    #[error("what the chain says of the devices: {0}; without the file it is learned again")]
    Standing(#[from] kept::Error),
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
    /// What learns of changes of the devices, and what asks them for readings.
    learning: JoinSet<()>,
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
            homeassistant: home,
        } = prepared;
        let folder = config.data_dir.display().to_string();
        kept::make_folder(&config.data_dir).map_err(|e| Error::Folder(folder, e))?;
        let listen = config.http.listen;
        let listener = port::listen(listen).await.map_err(|e| Error::Http(listen, e))?;
        let founded = sealer.network;
        let (spool, quarantine) = (config.outbox.clone(), config.quarantine.clone());
        let outbox = Outbox::open(spool, quarantine, &config.data_dir, sealer)?;
        let (directory, files) = devices(&config, enrolments, founded).await?;
        let place = (founded, &config.gateway);
        let keys = transit::open(&config.data_dir, place, outbox::now_ms())?;
        let transit = Transit::new(keys, config.mqtt.demand());
        let shown = config.homeassistant.as_ref().zip(home.as_ref());
        let newest = shown.map(|(config, _)| config.newest());
        let (known, sink) = (directory.clone(), outbox.clone());
        let intake = Intake::with(config.gateway.clone(), known, sink, transit.clone()).shown(newest.clone());
        let presence = Presence::of(intake.clone(), config.mqtt.silent_after());
        let mqtt = Mqtt::start(mqtt, intake.clone(), presence.clone()).await?;
        let client = follow::client(network.tls().clone())?;
        let uplink = Uplink::start(&config.uplink, network, outbox.clone())?;
        let following = Following {
            gateway: config.gateway.clone(),
            nodes: config.uplink.bases(),
            client,
            voters: uplink.voters(),
            directory: directory.clone(),
            folder: config.data_dir.clone(),
        };
        let (asking, asker) = mqtt.asking(&config.mqtt, (&intake, outbox.clone()), presence.clone());
        let mut learning = JoinSet::new();
        learning.spawn(asking);
        if let (Some(shown), Some(newest)) = (shown, newest) {
            let known = (directory.clone(), presence.clone());
            learning.spawn(Export::of(shown, &config.gateway, newest, known)?.run());
        }
        learning.spawn(files.run());
        learning.spawn(transit.clone().run(config.data_dir.clone()));
        learning.spawn(following.run());
        let sources = Sources {
            network: founded,
            gateway: config.gateway,
            transit,
            devices: directory,
            connected: mqtt.connected(),
            intake,
            presence,
            asker,
            outbox: outbox.clone(),
            uplink: uplink.view(),
            metrics,
        };
        let http = tokio::spawn(http::serve(listener, sources));
        Ok(Self {
            outbox,
            mqtt,
            uplink,
            learning,
            http,
        })
    }

    /// Resolves when a room has ended by itself: a gateway that is half alive must not go on.
    pub async fn failed(&mut self) -> Error {
        tokio::select! {
            () = self.mqtt.ended() => Error::Ended("mqtt"),
            ended = self.uplink.ended() => ended.map_or_else(Error::from, |()| Error::Ended("the outbox")),
            _ = self.learning.join_next() => Error::Ended("what looks after the devices"),
            _ = &mut self.http => Error::Ended("http"),
        }
    }

    /// Takes no more messages, makes durable what was taken, and ends.
    pub async fn stop(mut self) {
        self.mqtt.stop();
        self.uplink.stop();
        self.learning.abort_all();
        self.outbox.stop().await;
        self.http.abort();
    }
}

/// Which device measures whom as of now, and what reads the files that say so again.
async fn devices(config: &Config, enrolments: Enrolments, network: NetworkId) -> Result<(Directory, Files), Error> {
    let directory = Directory::from((config.gateway.clone(), enrolments));
    directory.obey(Standing::load(&config.data_dir)?);
    let places = Places {
        enrolments: config.enrolment.file.clone(),
        folder: config.data_dir.clone(),
        network,
    };
    let files = Files::open(directory.clone(), places).await?;
    Ok((directory, files))
}

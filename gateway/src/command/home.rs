//! What people at home do beside a running gateway: print a claim, see what was claimed, say whom a shared device measures.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use qrcode::{EcLevel, QrCode, render::svg, render::unicode::Dense1x2};
use record::{bundle::SubjectKey, ids::DeviceId};

use crate::{
    assignment::{Assignment, Assignments},
    claim::{Claims, Invitation, Kind, is_address},
    config::{Config, Prepared},
    kept, mqtt,
    outbox::{can_seal_to, now_ms},
    spelling,
    standing::Standing,
    tls, transit,
};

/// A claim is valid for so long, at most.
const VALID_MINUTES_MAX: i64 = 60 * 24 * 30;
/// More bytes than a subject key's file has.
const SUBJECT_BYTES_MAX: u64 = 16 << 10;

/// One-time codes for new devices.
#[derive(Debug, Subcommand)]
pub(super) enum Claim {
    /// Prints a code for one device: as text, and as a QR code.
    New(New),
    /// One line each: claim, device, until when, what became of it, and which key was presented.
    List {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints the keys that were presented and that the chain does not have, of each device in their order, for the operator:
    /// `fog-node edge .. approve FILE`.
    Requests {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
}

/// A code for one device.
#[derive(Debug, Args)]
pub(super) struct New {
    /// The gateway's configuration, TOML.
    #[arg(long)]
    config: PathBuf,
    /// What the device is to be called. One that is enrolled gets another key by it.
    #[arg(long)]
    device: DeviceId,
    /// Whom it measures: a subject key as in the enrolment file, JSON. Without it, it measures whom it is assigned to.
    #[arg(long)]
    subject: Option<PathBuf>,
    /// Where the device connects, mqtts://HOST:PORT; as the configuration says if it is not given.
    #[arg(long)]
    url: Option<String>,
    /// The authority that signed the broker's certificate, PEM; that of the fog nodes, or of the outside broker, if it is not
    /// given.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Until when it can be used.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..=VALID_MINUTES_MAX))]
    valid_minutes: i64,
    /// Writes the QR code into this file as well, SVG. It is a secret until it is used.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Says whom a device measures, from a time on.
#[derive(Debug, Args)]
pub(super) struct Assign {
    /// The gateway's configuration, TOML.
    #[arg(long)]
    pub(super) config: PathBuf,
    /// The device.
    #[arg(long)]
    device: DeviceId,
    /// Whom: a subject key as in the enrolment file, JSON.
    #[arg(long, required_unless_present = "nobody")]
    subject: Option<PathBuf>,
    /// Nobody: its readings go to quarantine.
    #[arg(long, conflicts_with = "subject")]
    nobody: bool,
    /// From when on, e.g. 2026-11-26T08:00:00Z; from now on if it is not given.
    #[arg(long, value_parser = moment)]
    from: Option<jiff::Timestamp>,
}

impl Claim {
    /// The configuration that is named.
    pub(super) fn config(&self) -> &Path {
        match self {
            Self::New(New { config, .. }) | Self::List { config } | Self::Requests { config } => config,
        }
    }

    /// Does it, and gives what is printed.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn run(self, prepared: &Prepared) -> Result<String, String> {
        let folder = &prepared.config.data_dir;
        match self {
            Self::New(new) => new.run(prepared),
            Self::List { .. } => {
                let claims = Claims::load(folder).map_err(|e| e.to_string())?;
                let line = |claim: &crate::claim::Claim| {
                    let became = match &claim.used {
                        Some(used) => format!("used {}\t{}", at(used.at_ms), used.key),
                        None if now_ms() > claim.expires_ms => "expired".to_owned(),
                        None => "open".to_owned(),
                    };
                    format!("{}\t{}\t{}\t{became}\n", claim.id, claim.device, at(claim.expires_ms))
                };
                Ok(claims.iter().map(line).collect())
            }
            Self::Requests { .. } => {
                let claims = Claims::load(folder).map_err(|e| e.to_string())?;
                let standing = Standing::load(folder).map_err(|e| e.to_string())?;
                let requests = claims.requests(&prepared.config.gateway, &standing);
                let text = serde_json::to_string_pretty(&requests).map_err(|e| e.to_string())?;
                Ok(format!("{text}\n"))
            }
        }
    }
}

impl New {
    fn run(self, prepared: &Prepared) -> Result<String, String> {
        let folder = &prepared.config.data_dir;
        let standing = Standing::load(folder).map_err(|e| e.to_string())?;
        if standing
            .devices
            .get(&self.device)
            .is_some_and(|device| device.revoked.is_some())
        {
            let device = self.device;
            return Err(format!(
                "device {device} is revoked on the chain, and its name is used up for good: give the device another name"
            ));
        }
        let subject = self.subject.map(|file| read_subject(&file)).transpose()?;
        let door = Door::of(prepared, self.url)?;
        let ca_sha256 = tls::fingerprint(self.ca.as_deref().unwrap_or(door.ca))?;
        let place = (prepared.sealer.network, &prepared.config.gateway);
        let keys = transit::open(folder, place, now_ms()).map_err(|e| e.to_string())?;
        let times = (now_ms(), self.valid_minutes * 60_000);
        let image = self.svg.as_deref().map(Image::make).transpose()?;
        let made = Claims::make(folder, (self.device, subject), times);
        let (claim, secret) = made.map_err(|error| {
            if let Some(image) = &image {
                image.forget();
            }
            error.to_string()
        })?;
        let invitation = Invitation {
            v: 1,
            broker: door.kind,
            url: door.url,
            user: door.user,
            password: door.password,
            ca_sha256,
            network: prepared.sealer.network,
            gateway: prepared.config.gateway.clone(),
            reading_key: keys.current().public(),
            device: claim.device,
            claim: claim.id,
            secret,
            expires_ms: claim.expires_ms,
        };
        print(&invitation, image)
    }
}

impl Assign {
    /// Keeps it; the running gateway takes it within a second or two.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn run(self, prepared: &Prepared) -> Result<String, String> {
        let folder = &prepared.config.data_dir;
        known(prepared, &self.device)?;
        let subject = self.subject.map(|file| read_subject(&file)).transpose()?;
        let from_ms = self.from.map_or_else(now_ms, jiff::Timestamp::as_millisecond);
        let _alone = alone(folder, "assignments.lock")?;
        let mut assignments = Assignments::load(folder).map_err(|e| e.to_string())?;
        let line = Assignment {
            device: self.device,
            subject,
            from_ms,
        };
        let said = shown(&line);
        assignments.add(folder, line).map_err(|e| e.to_string())?;
        Ok(said)
    }
}

/// Refuses a device that nobody knows: neither the list, nor a code that was or is to be used, nor the chain.
fn known(prepared: &Prepared, device: &DeviceId) -> Result<(), String> {
    let folder = &prepared.config.data_dir;
    let claims = Claims::load(folder).map_err(|e| e.to_string())?;
    let standing = Standing::load(folder).map_err(|e| e.to_string())?;
    let listed = prepared.enrolments.iter().map(|one| &one.device);
    let by_code = claims.iter().map(|claim| &claim.device);
    let all = listed.chain(by_code).chain(standing.devices.keys());
    spelling::known(device, all).map_err(|unknown| among(&unknown, &prepared.config))
}

/// A sentence about a device that is not known, and where those are that are.
pub(super) fn among(unknown: &str, config: &Config) -> String {
    let list = config.enrolment.file.display();
    format!("{unknown}\nthe devices are those of {list}, and those of the codes that `gateway claim list` shows")
}

fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    let expected = "expected a day, a time and Z or an offset, e.g. 2026-11-26T08:00:00Z or 2026-11-26T09:00:00+01:00";
    text.parse().map_err(|_| expected.to_owned())
}

/// All assignments, one line each: device, from when on, and the id of the key that its readings are sealed to.
pub(super) fn assignments(prepared: &Prepared) -> Result<String, String> {
    let all = Assignments::load(&prepared.config.data_dir).map_err(|e| e.to_string())?;
    Ok(all.lines().iter().map(shown).collect())
}

fn shown(line: &Assignment) -> String {
    let whom = line.subject.as_ref().map(|subject| subject.id().to_string());
    let whom = whom.unwrap_or_else(|| "nobody".to_owned());
    format!("{}\t{}\t{whom}\n", line.device, at(line.from_ms))
}

pub(super) fn at(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string())
}

/// Two commands at a time would lose one of two changes.
pub(super) fn alone(folder: &Path, name: &str) -> Result<fs::File, String> {
    let path = folder.join(name);
    let lock = || -> std::io::Result<fs::File> {
        kept::make_folder(folder)?;
        let file = fs::File::create(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    };
    lock().map_err(|e| format!("{}: another command holds it: {e}", path.display()))
}

fn read_subject(file: &Path) -> Result<SubjectKey, String> {
    let sentence = |e: &dyn std::fmt::Display| format!("subject {}: {e}", file.display());
    let read = kept::read::<SubjectKey>(file, SUBJECT_BYTES_MAX).map_err(|e| sentence(&e))?;
    let subject = read.ok_or_else(|| sentence(&"there is no such file"))?;
    if can_seal_to(&subject) {
        Ok(subject)
    } else {
        Err(sentence(&"not a usable X25519 subject key"))
    }
}

/// Where a new device comes in, and as whom.
struct Door<'a> {
    kind: Kind,
    url: String,
    user: Option<String>,
    password: Option<String>,
    ca: &'a Path,
}

impl<'a> Door<'a> {
    fn of(prepared: &'a Prepared, url: Option<String>) -> Result<Self, String> {
        if let Some(url) = url.as_deref().filter(|url| !is_address(url)) {
            return Err(format!(
                "--url {url:?} must be mqtts://HOST:PORT: a device connects by MQTT over TLS, and never without"
            ));
        }
        let mqtt = &prepared.config.mqtt;
        if mqtt.driver == mqtt::Driver::Embedded {
            let listen = mqtt.broker.listen;
            if url.is_none() && listen.ip().is_unspecified() {
                return Err("--url is needed: the configuration does not say how devices reach the broker".to_owned());
            }
            return Ok(Self {
                kind: Kind::Embedded,
                url: url.unwrap_or_else(|| format!("mqtts://{listen}")),
                user: None,
                password: None,
                ca: &prepared.config.uplink.ca,
            });
        }
        let Some(claims) = &mqtt.subscriber.claims else {
            return Err(
                "the gateway hears no claims at its outside broker: set [mqtt.subscriber.claims], see OPERATIONS.md"
                    .to_owned(),
            );
        };
        Ok(Self {
            kind: Kind::External,
            url: url.unwrap_or_else(|| claims.url.clone()),
            user: claims.user.clone(),
            password: claims.password().transpose()?,
            ca: &mqtt.subscriber.ca,
        })
    }
}

/// The invitation as text and as a QR code for a terminal; as SVG in a file that nobody else can read.
fn print(invitation: &Invitation, image: Option<Image>) -> Result<String, String> {
    let text = serde_json::to_string(invitation).map_err(|e| e.to_string())?;
    let code = QrCode::with_error_correction_level(&text, EcLevel::L).map_err(|e| e.to_string())?;
    if let Some(image) = image {
        // The claim is made: without its image there is still its text.
        if let Err(fault) = image.draw(&code) {
            return Ok(format!("{text}\n\nno image: {fault}\n"));
        }
    }
    let blocks = code.render::<Dense1x2>().build();
    Ok(format!("{text}\n\n{blocks}\n"))
}

/// The file of a code, empty: it is there before the claim is made, which nobody could use whose code was not printed.
struct Image<'a> {
    path: &'a Path,
    file: fs::File,
}

impl<'a> Image<'a> {
    fn make(path: &'a Path) -> Result<Self, String> {
        let file = kept::new_file(path).map_err(|e| {
            format!(
                "--svg {}: {e}; name a new file in a folder that is there",
                path.display()
            )
        })?;
        Ok(Self { path, file })
    }

    /// There is nothing to draw.
    fn forget(&self) {
        // Nobody misses it, and nobody is misled by it.
        let _still_there = fs::remove_file(self.path);
    }

    fn draw(mut self, code: &QrCode) -> Result<(), String> {
        let image = code.render::<svg::Color<'_>>().min_dimensions(400, 400).build();
        let written = self
            .file
            .write_all(image.as_bytes())
            .and_then(|()| self.file.sync_all());
        written
            .inspect_err(|_| self.forget())
            .map_err(|e| format!("--svg {}: {e}", self.path.display()))
    }
}

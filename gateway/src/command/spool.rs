//! What an operator does with the spool of a stopped gateway: list, inspect, export, requeue.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use record::ids::{BundleId, NetworkId};

use super::{FAILED, end_on_panic, identifier, prepare, refuse};
use crate::outbox::{self, Inspected, Shelf, Ticket, now_ms};

/// A commitment's bucket is an hour.
const BUCKET_MS: i64 = ledger::transaction::TIME_BUCKET_MS;

#[derive(Debug, Subcommand)]
pub(super) enum Spool {
    /// One line each, the oldest first: bundle, place in the queue, urgency, age in seconds, readings, bytes.
    List {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Says of one bundle for which key it is sealed, and whether its bytes and signature hold. Never a content.
    Inspect {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// The bundle.
        #[arg(long, value_parser = identifier::<BundleId>)]
        bundle: BundleId,
    },
    /// Writes each bundle to a file of its own, as a fog node takes it. The spool stays as it is.
    Export {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// A new folder, or an empty one.
        #[arg(long)]
        to: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Refused {
    /// One line each: bundle, since when, readings, bytes, reason.
    List {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Sends them again after the next start.
    Requeue {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// This bundle alone.
        #[arg(long, required_unless_present = "all", value_parser = identifier::<BundleId>)]
        bundle: Option<BundleId>,
        /// All of them.
        #[arg(long, conflicts_with = "bundle")]
        all: bool,
    },
}

/// The spool of a stopped gateway, and the network it belongs to.
pub(super) struct Opened {
    pub(super) shelf: Shelf,
    pub(super) network: NetworkId,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Open(#[from] outbox::Error),
    #[error("the spool cannot be read: {0}")]
    Store(#[from] redb::Error),
    #[error(transparent)]
    Export(#[from] outbox::ExportError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Said(String),
}

impl Spool {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::List { config } => with_shelf(&config, |Opened { shelf, .. }, out| {
                let now = now_ms();
                shelf.each(|ticket| out.write_all(line(&ticket, now).as_bytes()).map_err(Failure::from))
            }),
            Self::Inspect { config, bundle } => {
                with_shelf(&config, |Opened { shelf, .. }, out| match shelf.inspect(bundle)? {
                    Some(inspected) => Ok(out.write_all(text(&inspected).as_bytes())?),
                    None => Err(Failure::Said(format!(
                        "{bundle} is not in the queue: it is final, or set aside, or unknown"
                    ))),
                })
            }
            Self::Export { config, to } => with_shelf(&config, |Opened { shelf, .. }, out| {
                let exported = shelf.export(&to)?;
                writeln!(out, "{} bundles are in {}", exported.bundles, to.display())?;
                match exported.damaged {
                    0 => Ok(()),
                    damaged => Err(Failure::Said(format!(
                        "{damaged} bundles are damaged and were left out: their bytes are not those that were sealed"
                    ))),
                }
            }),
        }
    }
}

impl Refused {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::List { config } => with_shelf(&config, |Opened { shelf, .. }, out| {
                for one in shelf.refused()? {
                    let since = jiff::Timestamp::from_millisecond(one.at_ms).map(|at| at.to_string());
                    let (since, reason) = (since.unwrap_or_default(), one.reason_in_one_line());
                    writeln!(
                        out,
                        "{}\t{since}\t{}\t{}\t{reason}",
                        one.bundle, one.readings, one.bytes
                    )?;
                }
                Ok(())
            }),
            Self::Requeue { config, bundle, .. } => with_shelf(&config, |Opened { shelf, .. }, out| {
                match (shelf.requeue(bundle)?, bundle) {
                    (0, Some(bundle)) => Err(Failure::Said(format!(
                        "{bundle} is not among those that were set aside: `gateway refused list` shows them"
                    ))),
                    (requeued, _) => Ok(writeln!(out, "{requeued} bundles go back into the queue")?),
                }
            }),
        }
    }
}

/// Does something with the spool of a stopped gateway.
pub(super) fn with_shelf(config: &Path, work: impl FnOnce(&Opened, &mut dyn Write) -> Result<(), Failure>) -> ExitCode {
    let prepared = match prepare(config) {
        Ok(prepared) => prepared,
        Err(faults) => return refuse(&faults),
    };
    end_on_panic();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let worked = Shelf::open(&prepared.config.data_dir, &prepared.sealer)
        .map_err(Failure::from)
        .and_then(|shelf| {
            let network = prepared.sealer.network;
            work(&Opened { shelf, network }, &mut out)
        });
    // What was done before a failure is said, too.
    let worked = out.flush().map_err(Failure::from).and(worked);
    match worked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit code still says it.
            let _unprinted = writeln!(io::stderr(), "{error}");
            ExitCode::from(FAILED)
        }
    }
}

fn line(ticket: &Ticket, now_ms: i64) -> String {
    let age = |sealed_ms: i64| format!("{}", now_ms.saturating_sub(sealed_ms).max(0) / 1_000);
    format!(
        "{}\t{}\t{}\t{}\t{}\t{}\n",
        ticket.bundle,
        ticket.order,
        ticket.urgency.as_str(),
        ticket.sealed_ms.map_or_else(|| "-".to_owned(), age),
        ticket.readings,
        ticket.bytes
    )
}

fn text(inspected: &Inspected) -> String {
    let or = |holds: bool, yes: &'static str, no: &'static str| if holds { yes } else { no };
    let mut lines = vec![
        ("bundle", inspected.ticket.bundle.to_string()),
        ("place", inspected.ticket.order.to_string()),
        ("urgency", inspected.ticket.urgency.as_str().to_owned()),
        ("bytes", inspected.ticket.bytes.to_string()),
    ];
    if let Some(commitment) = &inspected.commitment {
        let hour = jiff::Timestamp::from_millisecond(commitment.bucket.saturating_mul(BUCKET_MS));
        lines.extend([
            ("key", commitment.key.to_string()),
            ("count", commitment.count.to_string()),
            ("bucket", hour.map(|hour| hour.to_string()).unwrap_or_default()),
            ("cid", commitment.cid.to_string()),
        ]);
    }
    if let Some((category, epoch)) = inspected.sealed_to {
        lines.extend([("category", category.as_str().to_owned()), ("epoch", epoch.to_string())]);
    }
    let damaged = "damaged: not those that were sealed";
    lines.push(("payload", or(inspected.is_intact, "intact", damaged).to_owned()));
    let broken = "does not hold: not signed by this gateway's key";
    lines.push(("signature", or(inspected.is_signed, "holds", broken).to_owned()));
    lines.iter().map(|(name, value)| format!("{name}\t{value}\n")).collect()
}

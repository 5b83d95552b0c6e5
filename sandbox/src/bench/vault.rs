//! What a payload costs where it is kept: put and read in the embedded store, and at a daemon if one is named, beside a plain file
//! that is written, synced and read.
//!
//! One after the other, from this process, without a network. A vault's put returns when the payload is durable and its read has
//! hashed every byte; the plain file is synced, and so is its folder, and nothing is hashed. Reads come from the system's memory in
//! all of them. The most memory of this process is that of each row alone: the kernel's mark is set back before it.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fog_node::vault::{Config, Driver, Object, Vault, kubo};
use futures::{StreamExt as _, stream};
use record::canonical;
use serde::Serialize;
use serde_bytes::ByteBuf;
use serde_json::json;

use super::{
    attended::{Ended, attend, conclude},
    usage::load_average,
};
use crate::{fault::Fault, folder::Folder, memory::Memory, status::Screen};

/// Sizes, and how often each is put and read; a daemon that is slow gets a part of it.
const SIZES: [(usize, usize); 4] = [(1_000, 300), (100_000, 150), (1_000_000, 50), (100_000_000, 5)];
/// This part of it at a daemon.
const DAEMON_SHARE: usize = 5;
/// Bytes of a piece of a large record's stream.
const PIECE_BYTES: usize = 64 << 10;
/// The largest payload that is one block.
const BLOCK_BYTES: usize = record::bundle::PAYLOAD_BYTES_MAX;
/// Bytes that the CBOR around a payload takes, at most.
const HEAD_BYTES: usize = 5;

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// The RPC of a daemon that keeps payloads, if one is to be measured.
    pub(super) daemon: Option<kubo::Api>,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// One way to keep payloads of one size.
#[derive(Debug, Serialize)]
struct Row {
    way: String,
    bytes: usize,
    times: usize,
    put: Figures,
    read: Figures,
    /// The most memory of this process meanwhile, beyond what it had before.
    memory_bytes: Option<u64>,
}

/// What one step took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    p50_ms: f64,
    p99_ms: f64,
    megabytes_per_s: f64,
}

impl Figures {
    fn of(bytes: usize, mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
        let total: Duration = took.iter().sum();
        Self {
            p50_ms: at(50),
            p99_ms: at(99),
            megabytes_per_s: (bytes * took.len()) as f64 / total.as_secs_f64() / 1e6,
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let step = |of: &Figures| format!("{:>9.2} {:>9.2} {:>8.1}", of.p50_ms, of.p99_ms, of.megabytes_per_s);
        let memory = self
            .memory_bytes
            .map_or_else(|| "?".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
        let (way, bytes, times) = (&self.way, self.bytes, self.times);
        write!(
            f,
            "{way:<22} {bytes:>10} {times:>4}  {}  {}  {memory:>6}",
            step(&self.put),
            step(&self.read)
        )
    }
}

/// Measures, or stops when somebody interrupts.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    // What the node's own client of its peers needs.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let before = load_average();
    let Ended {
        figures, mut screen, ..
    } = attend(async |_, screen| measure(&order, screen).await).await?;
    let figures = json!({"load_before": before, "load_after": load_average(), "rows": figures});
    screen.say(&format!(
        "load {:.1} before, {:.1} after",
        before.unwrap_or_default(),
        load_average().unwrap_or_default()
    ));
    conclude(&mut screen, [], order.report.as_deref(), &figures)?;
    Ok(true)
}

async fn measure(order: &Order, screen: &mut Screen) -> Result<Vec<Row>, Fault> {
    let folder = Folder::create(&order.data_dir)?;
    screen.say(
        "way                         bytes    n    put p50       p99     MB/s   read p50       p99     MB/s  MB more",
    );
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        screen.say(&row.to_string());
        rows.push(row);
    };
    let plain = folder.path("plain");
    fs::create_dir(&plain).map_err(Fault::file(&plain))?;
    for (bytes, times) in SIZES {
        add(files(&plain, bytes, times).map_err(Fault::file(&plain))?);
    }
    let mut drivers = vec![("embedded", Config::default())];
    if let Some(api) = &order.daemon {
        let mut config = Config {
            driver: Driver::Kubo,
            ..Config::default()
        };
        config.kubo = kubo::Config {
            api: api.clone(),
            read_timeout_ms: 60_000,
            write_timeout_ms: 60_000,
            ..kubo::Config::default()
        };
        drivers.push(("daemon", config));
    }
    for (name, config) in drivers {
        let own = Folder::create(&folder.path(name))?;
        let vault = Vault::open(&config, own.root(), reqwest::Client::new())
            .await
            .map_err(failed)?;
        let share = if config.driver == Driver::Kubo { DAEMON_SHARE } else { 1 };
        for (bytes, times) in SIZES {
            let times = (times / share).max(1);
            if bytes <= BLOCK_BYTES {
                add(payloads(&vault, name, (bytes, times)).await?);
            }
            if bytes >= BLOCK_BYTES {
                add(objects(&vault, name, (bytes, times)).await?);
            }
        }
    }
    Ok(rows)
}

fn failed(error: fog_node::vault::Error) -> Fault {
    Fault::Measure(format!("the vault: {error}"))
}

/// What this process has, after the kernel has forgotten what it had at most.
fn settled() -> Option<u64> {
    // Where it is not allowed, the most is that of the whole run.
    let _kept = fs::write("/proc/self/clear_refs", "5");
    Memory::of(std::process::id()).now_bytes
}

fn more_than(before: Option<u64>) -> Option<u64> {
    Some(Memory::of(std::process::id()).peak_bytes?.saturating_sub(before?))
}

fn timed<T>(took: &mut Vec<Duration>, since: Instant, done: T) -> T {
    took.push(since.elapsed());
    done
}

/// A piece that is nobody else's: no store is given the same twice.
fn piece(seed: u64, bytes: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

fn files(folder: &Path, bytes: usize, times: usize) -> std::io::Result<Row> {
    let before = settled();
    let (mut put, mut read) = (Vec::new(), Vec::new());
    let path = |at: usize| folder.join(format!("{bytes}-{at}"));
    let pieces = || piece(bytes as u64, PIECE_BYTES.min(bytes));
    for at in 0..times {
        let one = pieces();
        let since = Instant::now();
        let mut file = fs::File::create(path(at))?;
        for from in (0..bytes).step_by(one.len()) {
            file.write_all(&one[..one.len().min(bytes - from)])?;
        }
        file.sync_all()?;
        fs::File::open(folder)?.sync_all()?;
        timed(&mut put, since, ());
    }
    let mut buffer = vec![0; PIECE_BYTES];
    for at in 0..times {
        let since = Instant::now();
        let mut file = fs::File::open(path(at))?;
        while file.read(&mut buffer)? > 0 {}
        timed(&mut read, since, ());
    }
    Ok(Row {
        way: "plain file".to_owned(),
        bytes,
        times,
        put: Figures::of(bytes, put),
        read: Figures::of(bytes, read),
        memory_bytes: more_than(before),
    })
}

async fn payloads(vault: &Vault, name: &str, (bytes, times): (usize, usize)) -> Result<Row, Fault> {
    let before = settled();
    let (mut put, mut read, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..times {
        let random = piece((bytes + at) as u64, bytes - HEAD_BYTES);
        let payload = Bytes::from(canonical::encode(&ByteBuf::from(random.to_vec())));
        let since = Instant::now();
        held.push(timed(&mut put, since, vault.put(payload).await.map_err(failed)?));
    }
    for held in held {
        let since = Instant::now();
        let payload = timed(&mut read, since, vault.local(&held.cid()).await.map_err(failed)?);
        payload.ok_or_else(|| Fault::Measure("a payload is gone".to_owned()))?;
    }
    Ok(Row {
        way: format!("{name}, one block"),
        bytes,
        times,
        put: Figures::of(bytes, put),
        read: Figures::of(bytes, read),
        memory_bytes: more_than(before),
    })
}

async fn objects(vault: &Vault, name: &str, (bytes, times): (usize, usize)) -> Result<Row, Fault> {
    let before = settled();
    let (mut put, mut read, mut kept): (_, _, Vec<Object>) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..times {
        // A stream that costs next to nothing to make, whose pieces all differ.
        let base = piece((bytes + at) as u64, PIECE_BYTES);
        let pieces = (0..bytes).step_by(PIECE_BYTES).map(move |from| {
            let mut one = base[..PIECE_BYTES.min(bytes - from)].to_vec();
            let mark = (from as u64).to_le_bytes();
            let marked = mark.len().min(one.len());
            one[..marked].copy_from_slice(&mark[..marked]);
            Ok(Bytes::from(one))
        });
        let since = Instant::now();
        let object = vault
            .put_object(stream::iter(pieces), bytes as u64)
            .await
            .map_err(failed)?;
        kept.push(timed(&mut put, since, object));
    }
    for object in kept {
        let since = Instant::now();
        let all = vault
            .object(&object.held.cid(), 0..object.bytes)
            .await
            .map_err(failed)?;
        let (mut all, mut came) = (std::pin::pin!(all), 0);
        while let Some(part) = all.next().await {
            came += part.map_err(failed)?.len();
        }
        timed(&mut read, since, ());
        if came != bytes {
            return Err(Fault::Measure(format!("{came} bytes came of {bytes}")));
        }
    }
    Ok(Row {
        way: format!("{name}, large record"),
        bytes,
        times,
        put: Figures::of(bytes, put),
        read: Figures::of(bytes, read),
        memory_bytes: more_than(before),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_way_is_measured_and_gives_back_what_it_was_given() {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let vault = Vault::open(&Config::default(), dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let rows = [
            files(dir.path(), 70_000, 3).expect("measured"),
            payloads(&vault, "embedded", (1_000, 3)).await.expect("measured"),
            objects(&vault, "embedded", (300_000, 3)).await.expect("measured"),
        ];
        for row in rows {
            assert!(row.put.p50_ms > 0.0 && row.put.p99_ms >= row.put.p50_ms, "{row}");
            assert!(row.read.megabytes_per_s > 0.0, "{row}");
        }
        assert_ne!(piece(1, 100), piece(2, 100));
    }
}

//! A fog node as the gateway sees it: real TLS, signed admissions, receipts with the votes of three of four validators.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, BufReader, Read as _, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ledger::{
    admission::{Admission, Submission},
    block::{Block, Header, Height},
    proof::{Finalization, Receipt, Vote, vote_message},
    transaction::SignedTransaction,
};
use record::{
    bundle::{SealedBundle, SubjectSecret},
    canonical::Digest,
    ids::{DeviceId, KeyId, NetworkId},
    merkle,
    signature::SigningKey,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::home::Home;

/// Answers take up to so long, so that a gateway dies in all the moments between them.
const DELAY_MAX: Duration = Duration::from_millis(15);

/// What the node has admitted.
#[derive(Default)]
struct Held {
    by_bundle: HashMap<String, SignedTransaction>,
    /// In the order of admission, each bundle once.
    payloads: Vec<Vec<u8>>,
    /// Submissions of bundles that it had already.
    repeated: u64,
}

struct Parts {
    network: NetworkId,
    validators: Vec<SigningKey>,
    tls: Arc<ServerConfig>,
    // Each connection has a thread of its own, and all of them hold the same bundles.
    held: Mutex<Held>,
    is_down: AtomicBool,
    is_slow: bool,
}

/// A running node; it stops when it is dropped.
pub(crate) struct Fog {
    parts: Arc<Parts>,
    secrets: HashMap<KeyId, SubjectSecret>,
    address: SocketAddr,
}

impl Fog {
    /// The first node of the home's network.
    pub(crate) fn start(home: &Home, is_slow: bool) -> Self {
        let (network, node) = (&home.network, &home.network.nodes[0]);
        let chain = CertificateDer::pem_file_iter(&node.tls.certificate).expect("a file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&node.tls.private_key).expect("a key");
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let validator = |name: &String| {
            let file = network.folder.path(format!("nodes/{name}/validator.pem"));
            SigningKey::from_pem(&fs::read_to_string(file).expect("a key")).expect("a key")
        };
        let parts = Arc::new(Parts {
            network: network.id(),
            validators: network.nodes.iter().map(|node| validator(&node.name)).collect(),
            tls: Arc::new(tls.expect("they belong together")),
            held: Mutex::default(),
            is_down: AtomicBool::new(false),
            is_slow,
        });
        let address = network.ports.node_http(0);
        let listener = TcpListener::bind(address).expect("a free port");
        let accepting = Arc::clone(&parts);
        thread::spawn(move || accepting.accept(&listener));
        let people = &network.household.people;
        Self {
            parts,
            secrets: people.iter().map(|p| (p.key.id(), p.secret.clone())).collect(),
            address,
        }
    }

    /// The numbers of each device's readings, in the order in which their bundles were admitted, opened with their subjects'
    /// keys; and how many bundles those are.
    pub(crate) fn readings(&self, home: &Home) -> (BTreeMap<DeviceId, Vec<u64>>, usize) {
        let devices = &home.network.household.devices;
        let key = |id: &DeviceId| devices.iter().find(|device| device.id == *id).map(|device| device.key);
        let held = self.parts.held.lock().expect("no thread panics with it");
        let mut all: BTreeMap<DeviceId, Vec<u64>> = BTreeMap::new();
        for payload in &held.payloads {
            let sealed = SealedBundle::decode(payload).expect("sealed");
            let opened = sealed
                .open(&self.parts.network, &self.secrets[&sealed.key])
                .expect("opens");
            for entry in opened.entries {
                let reading = entry.reading.decode(key).expect("signed by its device");
                all.entry(reading.device).or_default().push(reading.seq);
            }
        }
        (all, held.payloads.len())
    }

    /// How often a bundle came that it had already.
    pub(crate) fn repeated(&self) -> u64 {
        self.parts.held.lock().expect("no thread panics with it").repeated
    }
}

impl Drop for Fog {
    fn drop(&mut self) {
        self.parts.is_down.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Parts {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.is_down.load(Ordering::Acquire) {
                return;
            }
            let parts = Arc::clone(&self);
            // A gateway that is killed breaks its connections.
            thread::spawn(move || drop(parts.serve(stream)));
        }
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let connection = ServerConnection::new(Arc::clone(&self.tls)).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        loop {
            let (path, length) = head(&mut stream)?;
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            if self.is_slow {
                thread::sleep(DELAY_MAX.mul_f64(rand::random_range(0.0..1.0)));
            }
            let (status, text) = self.answer(&path, &body);
            if self.is_down.load(Ordering::Acquire) {
                return Ok(());
            }
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", text.len());
            let out = stream.get_mut();
            out.write_all(&[head.as_bytes(), text.as_bytes()].concat())?;
            out.flush()?;
        }
    }

    fn answer(&self, path: &str, body: &[u8]) -> (&'static str, String) {
        if path == "/api/v1/bundles" {
            return self.admit(body);
        }
        let bundle = path
            .strip_prefix("/api/v1/receipts/")
            .and_then(|rest| rest.split('?').next());
        let held = self.held.lock().expect("no thread panics with it");
        let found = bundle.and_then(|bundle| held.by_bundle.get(bundle).cloned());
        drop(held);
        match found {
            Some(transaction) => ("200 OK", self.receipt(transaction)),
            None => ("404 Not Found", String::new()),
        }
    }

    fn admit(&self, body: &[u8]) -> (&'static str, String) {
        let Ok(matched) = Submission::decode(body) else {
            return ("422 Unprocessable Entity", "not a submission".to_owned());
        };
        let bundle = matched.commitment().bundle;
        let (transaction, payload) = matched.into_parts();
        let mut held = self.held.lock().expect("no thread panics with it");
        if held.by_bundle.insert(bundle.to_string(), transaction).is_none() {
            held.payloads.push(payload);
        } else {
            held.repeated += 1;
        }
        drop(held);
        let admission = Admission::sign(bundle, 1, &self.validators[0]);
        ("202 Accepted", serde_json::to_string(&admission).expect("encodes"))
    }

    fn receipt(&self, transaction: SignedTransaction) -> String {
        let header = Header {
            version: ledger::block::VERSION,
            network: self.network,
            epoch: 0,
            view: 1,
            parent_view: 0,
            leader: self.validators[0].public(),
            height: Height(1),
            parent: Digest::ZERO,
            timestamp_ms: 1,
            transactions_root: Digest::ZERO,
            policy: Digest::ZERO,
            next_validators: Digest::ZERO,
            nonce: 0,
        };
        let mut block = Block {
            header,
            transactions: vec![transaction],
        };
        block.header.transactions_root = merkle::root(&block.leaves());
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        let mut votes: Vec<_> = self.validators[..3].iter().map(vote).collect();
        votes.sort_by_key(|vote| vote.validator);
        let receipt = Receipt::of(&block, 0, vec![], Finalization { votes });
        receipt.expect("a commitment").to_json()
    }
}

/// The path of a request and how long its body is.
fn head(stream: &mut impl io::BufRead) -> io::Result<(String, usize)> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return path.map(|path| (path, length)).ok_or(io::ErrorKind::InvalidData.into());
        }
        if path.is_none() {
            path = line.split(' ').nth(1).map(str::to_owned);
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
}

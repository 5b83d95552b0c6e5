//! F10: the disk of a fog node is full, or of all of them. Refused aloud, nothing lost, and when there is room all is as before, by itself.

use std::{fs, path::PathBuf, time::Duration};

use sandbox::{
    agreement::agree,
    audit::Auditor,
    children::{Program, Supervised},
    client::Node,
    enrolment,
    network::Stores,
};

use crate::{
    Run,
    disks::publish,
    home::{Home, eventually},
    mount::Mount,
    publisher::Device,
};

const NO_MOUNT: Run = Run::NotRun("needs root, and unshare and nsenter of util-linux");
/// How large a node's disk is.
const DISK_BYTES: u64 = 192 << 20;
/// What stays free of it.
const RESERVE_BYTES: u64 = 64 << 20;
/// What `/readyz` says.
const FULL: &str = "the disk is full";
const DEVICES: usize = 4;
/// What the founding of a network may take on a machine that does something else.
const FOUNDING_MAX: Duration = Duration::from_secs(180);
const STOP_MAX: Duration = Duration::from_secs(60);
const AGREE_MAX: Duration = Duration::from_secs(120);

/// Four real fog nodes, some of them on small disks, each started again when it ends.
struct Fogs {
    nodes: Vec<Node>,
    processes: Vec<Supervised>,
    disks: Vec<Option<Mount>>,
    http: reqwest::Client,
}

impl Fogs {
    /// Starts them and founds the network; `None` where disks cannot be mounted.
    fn start(home: &Home, is_small: impl Fn(usize) -> bool) -> Option<Self> {
        let network = &home.network;
        let mut disks = Vec::new();
        // What runs here is the test, and the fog node is the sandbox's program under its name.
        let bin = network.folder.path("bin");
        fs::create_dir_all(&bin).expect("makes");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sandbox"), bin.join("fog-node")).expect("links");
        let mut programs = network
            .node_programs(300, Stores::default())
            .expect("writes the configurations");
        for (index, plan) in network.nodes.iter().enumerate() {
            if !is_small(index) {
                disks.push(None);
                continue;
            }
            let disk = Mount::of(&plan.data_dir, DISK_BYTES)?;
            for file in fs::read_dir(&plan.data_dir).expect("lists") {
                let file = file.expect("lists");
                let name = file.file_name().into_string().expect("our own names");
                fs::copy(file.path(), disk.path(&name)).expect("copies");
            }
            reserve(&network.folder.path(format!("nodes/{}/config.toml", plan.name)));
            let program = &mut programs[index];
            let prefix = disk.prefix().into_iter().skip(1).map(PathBuf::from);
            *program = Program {
                arguments: prefix
                    .chain([program.executable.clone()])
                    .chain(program.arguments.clone())
                    .collect(),
                executable: "nsenter".into(),
                ..program.clone()
            };
            disks.push(Some(disk));
        }
        let _inside = home.runtime.enter();
        let http = network.callers.anybody().expect("a client");
        let nodes: Vec<_> = network
            .nodes
            .iter()
            .map(|plan| Node::at(http.clone(), &plan.url))
            .collect();
        let processes = programs
            .into_iter()
            .map(|program| Supervised::start(program, STOP_MAX))
            .collect();
        let fogs = Self {
            nodes,
            processes,
            disks,
            http,
        };
        for index in 0..fogs.nodes.len() {
            fogs.until(home, index, "it is ready", |status, _| status == 200);
        }
        home.runtime
            .block_on(enrolment::enrol(network, &fogs.nodes, FOUNDING_MAX))
            .expect("enrols");
        Some(fogs)
    }

    fn disk(&self, index: usize) -> &Mount {
        self.disks[index].as_ref().expect("a small one")
    }

    /// Status and body of what a node answers, if it does.
    fn ask(
        &self,
        home: &Home,
        index: usize,
        request: impl Fn(&str) -> reqwest::RequestBuilder,
    ) -> Option<(u16, String)> {
        let request = request(&home.network.nodes[index].url).timeout(Duration::from_secs(5));
        home.runtime.block_on(async {
            let answer = request.send().await.ok()?;
            Some((answer.status().as_u16(), answer.text().await.ok()?))
        })
    }

    fn get(&self, home: &Home, index: usize, path: &str) -> Option<(u16, String)> {
        self.ask(home, index, |url| self.http.get(format!("{url}{path}")))
    }

    /// Waits until `/readyz` of a node says something.
    fn until(&self, home: &Home, index: usize, what: &str, is_so: impl Fn(u16, &str) -> bool) {
        eventually(what, || {
            let life = self.processes[index].life();
            assert!(!life.over, "{:?}", self.processes[index].program().log_tail());
            self.get(home, index, "/readyz")
                .is_some_and(|(status, body)| is_so(status, &body))
        });
    }

    /// The sum of a metric's lines, if the node counts it.
    fn metric(&self, home: &Home, index: usize, line: &str) -> Option<f64> {
        let (_, text) = self.get(home, index, "/metrics")?;
        let values = text
            .lines()
            .filter_map(|text| text.strip_prefix(line)?.trim().parse::<f64>().ok());
        values.reduce(|a, b| a + b)
    }

    /// All nodes agree, and each reading that was acknowledged is on the chain, once.
    fn each_once(&self, home: &Home, devices: &[Device]) {
        let names: Vec<_> = home.network.nodes.iter().map(|plan| plan.name.as_str()).collect();
        home.runtime.block_on(async {
            let agreement = agree(&self.nodes, &names, AGREE_MAX).await;
            assert_eq!(agreement.fault, None);
            let height = agreement.height().expect("they agree");
            let chain = Auditor::of(&home.network).expect("an auditor").walk(height).await;
            assert_eq!(chain.faults(), &[] as &[String]);
            for device in devices {
                for reading in device.readings() {
                    assert_eq!(chain.times(&reading), 1, "{reading:?}");
                }
            }
        });
    }

    fn stop(self, home: &Home) {
        home.runtime.block_on(async {
            for process in self.processes {
                // One that broke down on its full disk has said so; what counts is what became of the readings.
                let _sentences = process.stop().await;
            }
        });
    }
}

/// Sets what stays free in a node's configuration.
fn reserve(config: &std::path::Path) {
    let text = fs::read_to_string(config).expect("is there");
    let mut settings: toml::Table = toml::from_str(&text).expect("TOML");
    let vault = settings["vault"].as_table_mut().expect("a section");
    vault.insert(
        "disk_reserve_bytes".to_owned(),
        i64::try_from(RESERVE_BYTES).expect("fits").into(),
    );
    fs::write(config, settings.to_string()).expect("writes");
}

fn home() -> Home {
    let home = Home::found(DEVICES);
    let urls: Vec<_> = home.network.nodes.iter().map(|plan| plan.url.clone()).collect();
    let urls = serde_json::to_string(&urls).expect("encodes");
    home.set("GATEWAY_UPLINK__NODES", urls)
}

/// One full node takes nothing and says so, votes on, stops in good order when not even that is possible, and comes back by
/// itself; the three others carry everything meanwhile.
pub(crate) fn one() -> Run {
    const FULL_ONE: usize = 3;
    let home = home();
    let Some(fogs) = Fogs::start(&home, |index| index == FULL_ONE) else {
        return NO_MOUNT;
    };
    let gateway = home.start();
    let mut devices: Vec<_> = (0..DEVICES).map(|index| home.device(index)).collect();
    let mut all_final = |home: &Home, readings: u64| {
        publish(home, &gateway, &mut devices, readings);
        home.until("all of it is final", |status| status["spooled_bundles"] == 0);
    };
    all_final(&home, 10);
    let disk = fogs.disk(FULL_ONE);
    disk.fill("ballast", RESERVE_BYTES / 4 * 3);
    fogs.until(&home, FULL_ONE, "it says that it is full", |status, body| {
        status == 503 && body.contains(FULL)
    });
    assert_eq!(fogs.metric(&home, FULL_ONE, "fog_space_short "), Some(1.0));
    let height = |fogs: &Fogs| fogs.metric(&home, FULL_ONE, "fog_chain_height ").unwrap_or_default();
    let before = height(&fogs);
    eventually("a gateway was told to go elsewhere", || {
        all_final(&home, 5);
        let refused = "fog_intake_submissions_total{outcome=\"failed\"} ";
        fogs.metric(&home, FULL_ONE, refused)
            .is_some_and(|refused| refused > 0.0)
    });
    eventually("it follows the chain all the same", || height(&fogs) > before + 1.0);
    assert_eq!(fogs.processes[FULL_ONE].life().restarts, 0, "it did not end");

    disk.fill("more", RESERVE_BYTES / 4);
    eventually("it stops, and is started again", || {
        fogs.processes[FULL_ONE].life().restarts > 0
    });
    fogs.until(&home, FULL_ONE, "it says why it waits", |status, body| {
        status == 503 && body.contains(FULL) && !body.contains("height")
    });
    let breakdown = fogs.processes[FULL_ONE].life().last_breakdown.unwrap_or_default();
    assert!(breakdown.contains("exit status: 1"), "in good order: {breakdown}");
    let posted = fogs.ask(&home, FULL_ONE, |url| {
        fogs.http.post(format!("{url}/api/v1/bundles")).body("x")
    });
    assert_eq!(
        posted.map(|(status, _)| status),
        Some(503),
        "a gateway would take a 4xx as final"
    );
    assert_eq!(
        fogs.get(&home, FULL_ONE, "/healthz").map(|(status, _)| status),
        Some(200)
    );
    all_final(&home, 10);

    fs::remove_file(disk.path("more")).expect("is there");
    fs::remove_file(disk.path("ballast")).expect("is there");
    fogs.until(&home, FULL_ONE, "it is ready by itself", |status, _| status == 200);
    eventually("it holds what the others hold", || {
        all_final(&home, 1);
        let held = |index| fogs.metric(&home, index, "fog_vault_payload_bytes ");
        held(FULL_ONE).is_some() && held(FULL_ONE) == held(0)
    });
    fogs.each_once(&home, &devices);
    gateway.stop();
    fogs.stop(&home);
    Run::Done
}

/// All disks are full to the last byte at once: nothing becomes final, the gateway keeps what it acknowledges, and all of it is
/// final soon after there is room.
pub(crate) fn all() -> Run {
    let home = home();
    let Some(fogs) = Fogs::start(&home, |_| true) else {
        return NO_MOUNT;
    };
    let gateway = home.start();
    let mut devices: Vec<_> = (0..DEVICES).map(|index| home.device(index)).collect();
    publish(&home, &gateway, &mut devices, 10);
    home.until("all of it is final", |status| status["spooled_bundles"] == 0);
    for index in 0..fogs.nodes.len() {
        fogs.disk(index).fill("ballast", 0);
    }
    publish(&home, &gateway, &mut devices, 20);
    for index in 0..fogs.nodes.len() {
        fogs.until(&home, index, "each of them says that it is full", |status, body| {
            status == 503 && body.contains(FULL)
        });
    }
    publish(&home, &gateway, &mut devices, 5);
    home.until("the gateway keeps what it has acknowledged", |status| {
        status["spooled_readings"].as_u64() >= Some(5 * DEVICES as u64)
    });
    for index in 0..fogs.nodes.len() {
        fs::remove_file(fogs.disk(index).path("ballast")).expect("is there");
    }
    for index in 0..fogs.nodes.len() {
        fogs.until(&home, index, "each of them is ready by itself", |status, _| {
            status == 200
        });
    }
    publish(&home, &gateway, &mut devices, 5);
    home.until("all of it is final", |status| status["spooled_bundles"] == 0);
    fogs.each_once(&home, &devices);
    for index in 0..fogs.nodes.len() {
        let left = fs::read_dir(fogs.disk(index).path("")).expect("lists");
        let left: Vec<_> = left.map(|file| file.expect("lists").file_name()).collect();
        let is_evidence = |name: &std::ffi::OsString| name.to_string_lossy().contains("damaged");
        assert!(!left.iter().any(is_evidence), "nothing is damaged: {left:?}");
    }
    gateway.stop();
    fogs.stop(&home);
    Run::Done
}

//! F3 and F4: a gateway killed at any moment, and with ten thousand readings in its spool; and what a million cost.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use gateway::outbox::{self, Measurement, Outbox, QuarantineConfig, Urgency, Verdict};
use record::{
    bundle::{Category, Entry, SubjectSecret},
    ids::ReadingId,
    reading::SignedReading,
};
use sandbox::memory::Memory;

use crate::{
    Run,
    disks::{each_once, kill_after, publish, total},
    fog::Fog,
    home::{EVENTUALLY, Home, PAUSE},
    publisher::{Answer, Device},
};

/// How often it is killed.
const KILLS: u32 = 20;
/// The longest it lives before.
const LIFE_MAX: Duration = Duration::from_millis(400);
/// What a gateway may take of memory with ten thousand spooled readings.
const RSS_MAX_BYTES: u64 = 160 << 20;
const IN_FLIGHT: usize = 64;
/// Readings that are taken together while a spool is filled to be measured; one commit holds as many.
const TOGETHER: usize = 1_024;

/// F3: between decode, seal, commit, answer, submission, admission, receipt and forgetting there is no moment in which a kill
/// loses a reading or hands one in twice.
pub(crate) fn at_any_moment() -> Run {
    let home = Home::found(6);
    let fog = Fog::start(&home, true);
    let mut devices: Vec<_> = (0..6).map(|index| home.device(index)).collect();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let each = devices.iter_mut().map(|device| {
                let stopped = stopped.clone();
                async move {
                    while !*stopped.borrow() {
                        let answer = device.publish_next().await;
                        assert!(!matches!(answer, Answer::Refused(_)), "{answer:?}");
                    }
                }
            });
            home.runtime.block_on(futures::future::join_all(each));
        });
        for kill in 0..KILLS {
            // Every other one may die while it starts.
            let gateway = if kill % 2 == 0 { home.start() } else { home.spawn(&[]) };
            kill_after(gateway, LIFE_MAX.mul_f64(rand::random_range(0.0..1.0)));
        }
        stop.send_replace(true);
        // Whoever waits for an answer hears that its connection is gone, and stops.
        publishing.join().expect("no device was refused");
    });
    let gateway = home.start();
    publish(&home, &gateway, &mut devices, 3);
    home.until("all of it is forgotten", |status| status["spooled_bundles"] == 0);
    each_once(&home, &fog, &devices);
    let (acknowledged, repeated) = (total(&devices), fog.repeated());
    println!(
        "{KILLS} kills: {acknowledged} readings acknowledged, each handed in once; {repeated} bundles submitted anew"
    );
    assert!(acknowledged > 30, "readings flowed: {acknowledged}");
    gateway.stop();
    Run::Done
}

/// F4: all of them are there, leave in their order, each once, in bounded memory.
pub(crate) fn ten_thousand_spooled() -> Run {
    const DEVICES: usize = 40;
    let home = Home::found(DEVICES)
        .set("GATEWAY_UPLINK__IN_FLIGHT_MAX", IN_FLIGHT)
        // All of it is backlog, whenever it was sealed.
        .set("GATEWAY_UPLINK__BACKLOG_AFTER_MS", 1);
    let mut devices: Vec<_> = (0..DEVICES).map(|index| home.device(index)).collect();
    let gateway = home.start();
    publish(&home, &gateway, &mut devices, 250);
    home.until("all are spooled", |status| status["spooled_readings"] == 10_000);
    gateway.kill();
    let gateway = home.start();
    let status = home.status().expect("answers");
    assert_eq!(status["spooled_readings"], 10_000, "{status}");
    let bundles = status["spooled_bundles"].as_u64().expect("a number");
    let fog = Fog::start(&home, false);
    until_drained(&home);
    each_once(&home, &fog, &devices);
    let (readings, handed_in) = fog.readings(&home);
    assert_eq!(handed_in as u64, bundles);
    for (device, seqs) in &readings {
        let furthest = (1..)
            .zip(seqs)
            .map(|(place, seq)| seq.abs_diff(place))
            .max()
            .unwrap_or(0);
        // What is under way at a time may arrive in another order.
        assert!(furthest <= 2 * IN_FLIGHT as u64, "{device}: {furthest} places away");
    }
    let peak = Memory::of(gateway.pid()).peak_bytes.expect("Linux says it");
    println!(
        "10,000 spooled readings in {bundles} bundles: peak memory {} MiB",
        peak >> 20
    );
    assert!(peak < RSS_MAX_BYTES, "{peak} bytes");
    gateway.stop();
    Run::Done
}

/// Waits until nothing is spooled, as long as it becomes less: how fast it does is the machine's affair.
fn until_drained(home: &Home) {
    let (mut fewest, mut since) = (u64::MAX, Instant::now());
    while fewest > 0 {
        let left = home.status().and_then(|status| status["spooled_bundles"].as_u64());
        if let Some(left) = left.filter(|left| *left < fewest) {
            (fewest, since) = (left, Instant::now());
        }
        assert!(
            since.elapsed() < EVENTUALLY,
            "{fewest} bundles are left, and no fewer after {EVENTUALLY:?}"
        );
        thread::sleep(PAUSE);
    }
}

/// What so many spooled readings cost a gateway that starts with them: printed, in no test.
pub(crate) fn measure(arguments: &[String]) {
    let number = |at: usize, or: usize| arguments.get(at).map_or(or, |text| text.parse().expect("a number"));
    let (readings, in_a_bundle) = (number(0, 1_000_000), number(1, 20));
    let home = Home::found(1).set("GATEWAY_OUTBOX__BYTES_MAX", u64::MAX / 4);
    let device = home.device(0);
    home.runtime.block_on(stock(&home, &device, readings, in_a_bundle));
    let file = fs::metadata(home.data_dir().join("outbox.redb"))
        .expect("is there")
        .len();
    let begin = std::time::Instant::now();
    let gateway = home.start();
    let started = begin.elapsed();
    let memory = || Memory::of(gateway.pid());
    let mib = |bytes: Option<u64>| bytes.map_or(0, |bytes| bytes >> 20);
    let status = home.status().expect("answers");
    println!(
        "{} readings in {} bundles, file {} MiB: start {:.1} s, memory {} MiB",
        status["spooled_readings"],
        status["spooled_bundles"],
        file >> 20,
        started.as_secs_f64(),
        mib(memory().now_bytes)
    );
    let fog = Fog::start(&home, false);
    std::thread::sleep(Duration::from_secs(20));
    let left = home.status().expect("answers");
    println!(
        "after 20 s of draining {} bundles are left: memory {} MiB, at most {} MiB",
        left["spooled_bundles"],
        mib(memory().now_bytes),
        mib(memory().peak_bytes)
    );
    drop(fog);
}

/// Fills the spool as the gateway itself does, without the network in between.
async fn stock(home: &Home, device: &Device, readings: usize, in_a_bundle: usize) {
    let config = outbox::Config {
        linger_ms: 50,
        bytes_max: u64::MAX / 4,
        ..outbox::Config::default()
    };
    let opened = Outbox::open(config, QuarantineConfig::default(), home.data_dir(), home.sealer());
    let outbox = opened.expect("opens");
    let subject = |_| SubjectSecret::generate(Category::Vitals, 1).expect("random numbers").1;
    let subjects: Vec<_> = (0..(TOGETHER / in_a_bundle).max(1)).map(subject).collect();
    let together = in_a_bundle * subjects.len();
    for seq in (1..=readings as u64).step_by(together) {
        let until = (seq + together as u64).min(readings as u64 + 1);
        let together = (seq..until).enumerate().map(|(number, seq)| {
            let reading = SignedReading::receive(&device.reading(seq)).expect("small");
            let entry = Entry::new(outbox::now_ms(), reading);
            outbox.append(Measurement {
                id: ReadingId {
                    device: device.id.clone(),
                    boot: device.boot,
                    seq,
                },
                subject: subjects[number / in_a_bundle].clone(),
                entry,
                wall_ms: None,
                ticks_ms: None,
                urgency: Urgency::Live,
                is_wave: false,
            })
        });
        for taken in futures::future::join_all(together).await {
            assert!(matches!(taken, Ok(Verdict::Spooled(_))), "{taken:?}");
        }
    }
    outbox.stop().await;
}

//! A large cluster and a restless one: memory, publications, and how long news takes. What a clock decides is printed
//! rather than asserted; `cargo test --release --test it kubernetes::scale -- --ignored --nocapture` prints all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cases::generation;
use super::cluster::{Cluster, Endpoint, Slice, is_ready, wait_for};
use super::double::Double;
use super::traffic::{publish, slice};
use crate::support::{Client, Launch, PATIENCE, TestBackend, TestPerch, eventually};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";
const SERVICES: usize = 200;
const ENDPOINTS: usize = 50;

/// Events at a steady rate, of one slice, until it is dropped; how many there were.
struct Storm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Storm {
    fn start(double: &Arc<Double>, per_second: u32, slice: impl Fn(u32) -> Slice + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (double, is_over) = (double.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut events = 0;
            while !is_over.load(Ordering::Relaxed) {
                double.slice(&slice(events));
                events += 1;
                // Catches up when the machine was busy.
                let due = began + Duration::from_secs(1) * events / per_second;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            events
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Another pod each time, so that each event is a change.
fn restless(service: &'static str) -> impl Fn(u32) -> Slice {
    move |event| {
        let address = format!("10.2.{}.{}", event / 200 % 200, event % 200 + 1);
        Slice::of(service, &format!("{service}-1"), 80, &[Endpoint::ready(&address, &format!("p{event}"))])
    }
}

/// Two services: `hello` that users ask, and `noise`, whose endpoints never rest.
fn beside_noise(cluster: &Cluster) -> TestPerch {
    let perch = cluster
        .launch(
            BY_SERVICE,
            "    affinity: None\n  - {name: noise, versions: [{name: v, kubernetes: {service: noise, port: http}}]}\n",
        )
        .start();
    eventually(PATIENCE, || is_ready(&perch));
    perch
}

#[test]
fn a_storm_of_events_is_a_few_snapshots_and_the_last_word_counts() {
    let double = Arc::new(Double::start());
    let cluster = double.cluster();
    double.slice(&restless("hello")(0));
    let perch = cluster.perch(BY_SERVICE, "");
    let before = generation(&perch);
    let began = Instant::now();

    let storm = Storm::start(&double, 1_000, restless("hello"));
    eventually(PATIENCE, || began.elapsed() > Duration::from_secs(3));
    let events = storm.finish();
    double.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.7", "last")]));
    wait_for(&perch, "stable", &["10.1.0.7:80"]);

    let (published, seconds) = (generation(&perch) - before, began.elapsed().as_secs_f64());
    println!("{events} events in {seconds:.1} s were {published} snapshots");
    assert!(events > 1_000, "{events}");
    // One at the beginning that need not wait, and one for the last second that has only begun.
    assert!(published <= seconds * 10.0 + 2.0, "{published} snapshots in {seconds} s");
}

fn large(double: &Double) -> (Launch, Cluster) {
    double.pages_of(500);
    let mut services = String::new();
    for service in 0..SERVICES {
        let endpoint =
            |n: usize| Endpoint::ready(&format!("10.{service}.0.{n}"), &format!("service-{service}-5d59d67564-{n:05}"));
        let endpoints: Vec<Endpoint> = (1..=ENDPOINTS).map(endpoint).collect();
        double.slice(&Slice::of(&format!("s{service}"), &format!("s{service}-1"), 80, &endpoints));
        services += &format!(
            "  - {{name: s{service}, versions: [{{name: v, kubernetes: {{service: s{service}, port: http}}}}]}}\n"
        );
    }
    double.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.1.1", "a")]));
    let cluster = double.cluster();
    (cluster.launch(BY_SERVICE, &services), cluster)
}

fn resident_mib(perch: &TestPerch) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", perch.pid())).unwrap();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB");
    kib.parse::<f64>().unwrap() / 1024.0
}

#[test]
fn two_hundred_services_of_fifty_endpoints_take_a_hundred_mebibytes_at_most() {
    let double = Double::start();
    let (launch, _cluster) = large(&double);

    let began = Instant::now();
    let perch = launch.start();
    eventually(PATIENCE, || is_ready(&perch));
    let ready = began.elapsed();

    assert_eq!(perch.metric("perch_endpoints{service=\"s199\",version=\"v\",state=\"ready\"}"), Some(50.0));
    let at_start = resident_mib(&perch);
    // Each Service's endpoints change once, so that what an update leaves behind is counted, too.
    for service in 0..SERVICES {
        double.slice(&Slice::of(
            &format!("s{service}"),
            &format!("s{service}-2"),
            80,
            &[Endpoint::ready(&format!("10.{service}.1.1"), "new")],
        ));
    }
    eventually(PATIENCE, || {
        perch.metric("perch_endpoints{service=\"s199\",version=\"v\",state=\"ready\"}") == Some(51.0)
    });
    let after = resident_mib(&perch);
    println!("ready after {ready:?}, {at_start:.1} MiB; after all changed {after:.1} MiB");
    assert!(after <= 100.0, "{after:.1} MiB");
}

/// Latencies of requests, one after the other, until `stop`.
fn ask(perch: &TestPerch, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<Duration>> {
    let (address, stop) = (perch.address("http"), stop.clone());
    std::thread::spawn(move || {
        let mut client = Client::plain(address);
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert_eq!(client.get("hello", "/").status, 200);
            all.push(began.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        all.sort();
        all
    })
}

/// What a thread of perch has had so far: time on a core, and time in which it was ready and another had the core.
fn cores(perch: &TestPerch, name: &str) -> [Duration; 2] {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", perch.pid())).unwrap().map(|task| task.unwrap().path());
    let named = |task: &std::path::PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|c| c.trim() == name);
    let task = tasks.into_iter().find(named).expect("a thread of this name");
    let told = std::fs::read_to_string(task.join("schedstat")).unwrap();
    let mut nanos = told.split_whitespace().map(|n| Duration::from_nanos(n.parse().unwrap()));
    [(); 2].map(|()| nanos.next().unwrap())
}

/// How long it takes from a change in the API to the first answer of the new endpoint, `rounds` times.
fn news(
    double: &Double,
    perch: &TestPerch,
    backends: [&TestBackend; 2],
    rounds: usize,
    pause: Duration,
) -> Vec<Duration> {
    let mut client = Client::plain(perch.address("http"));
    let mut all = Vec::new();
    for round in 0..rounds {
        let (backend, name) = (backends[round % 2], ["b", "a"][round % 2]);
        // Not in step with the publications.
        std::thread::sleep(pause + Duration::from_millis(round as u64 * 37 % 100));
        let began = Instant::now();
        double.slice(&Slice { name: "hello-a".into(), ..slice(backend, "hello-a", name) });
        while client.get("hello", "/").text() != name {
            assert!(began.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_micros(200));
        }
        all.push(began.elapsed());
    }
    all.sort();
    all
}

fn percentile(sorted: &[Duration], p: usize) -> Duration {
    sorted[(sorted.len() * p / 100).min(sorted.len() - 1)]
}

#[test]
#[ignore = "prints figures: --release, on an idle machine"]
fn how_long_news_and_requests_take_in_calm_and_storm() {
    let double = Arc::new(Double::start());
    let cluster = double.cluster();
    let (a, b) = (TestBackend::named("a"), TestBackend::named("b"));
    publish(&cluster, &[(&a, "a")]);
    let perch = beside_noise(&cluster);
    // Without optimisation only whether it still runs is of interest: tests/figures --debug.
    let (rounds, asked) = if cfg!(debug_assertions) { (20, 2) } else { (200, 8) };
    println!("\nnews of the cluster ({rounds} for each line) and requests beside it (docs/lab.md):");
    let phase = |name: &str, storm: Option<Storm>| {
        let (began, before) = (Instant::now(), generation(&perch));
        let cores_before = ["control", "worker-0"].map(|thread| cores(&perch, thread));
        let stop = Arc::new(AtomicBool::new(false));
        let users = ask(&perch, &stop);
        std::thread::sleep(Duration::from_secs(asked));
        stop.store(true, Ordering::Relaxed);
        let requests = users.join().unwrap();
        let seconds = began.elapsed().as_secs_f64();
        let published = (generation(&perch) - before) / seconds;
        let cores = ["control", "worker-0"].map(|thread| cores(&perch, thread));
        let per_second = |thread: usize, what: usize| {
            (cores[thread][what] - cores_before[thread][what]).as_secs_f64() * 1000.0 / seconds
        };
        let threads = [per_second(0, 0), per_second(1, 0), per_second(1, 1)];
        let pause = if storm.is_some() { Duration::from_millis(20) } else { Duration::from_millis(150) };
        let news = news(&double, &perch, [&b, &a], rounds, pause);
        let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
        let seconds = began.elapsed().as_secs_f64();
        let events = storm.map_or(0.0, |s| f64::from(s.finish()) / seconds);
        println!(
            "{name}: control {:.0} ms/s on a core, worker {:.0} and {:.0} ms/s waiting for one",
            threads[0], threads[1], threads[2]
        );
        println!(
            "{name}: {events:.0} events/s, {published:.1} snapshots/s; requests p50 {} p99 {} ({}); news p50 {} p99 {} max {}",
            ms(percentile(&requests, 50)),
            ms(percentile(&requests, 99)),
            requests.len(),
            ms(percentile(&news, 50)),
            ms(percentile(&news, 99)),
            ms(news[news.len() - 1]),
        );
    };

    for _ in 0..2 {
        phase("calm ", None);
        phase("storm", Some(Storm::start(&double, 1_000, restless("noise"))));
    }
}

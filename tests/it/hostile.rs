//! What a system may do to the process: stop it, block one of its threads, take its ports, give it nothing but a read-only
//! root and no privileges (rows J6, J10, J11, J12). Where the test may not do that itself (no root), it says so and passes.

use std::process::Command;
use std::time::Duration;

use crate::front::{config, front, front_with};
use crate::support::{Act, Client, Launch, PATIENCE, Process, Seen, TestBackend, eventually, eventually_some, get, ok};

#[test]
fn a_stop_of_the_whole_process_is_nobodys_failure() {
    let front =
        front_with("", "timeouts: {responseHead: 1s}\nhealth: {path: /ok, interval: 100ms, timeout: 1s, fall: 1}");
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "slow")].concat() } else { ok(seen, "up") }
    });
    let mut waiting = front.client();
    waiting.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || front.backend.seen().iter().any(|seen| seen.target() == "/slow"));

    front.perch.signal("STOP");
    front.backend.open_gate();
    // Longer than every limit above, and than a blocked worker may be.
    std::thread::sleep(Duration::from_secs(4));
    front.perch.signal("CONT");

    assert_eq!(waiting.response().text(), "slow", "the answer was there in time");
    assert_eq!(front.client().get("a", "/").text(), "up");
    assert_eq!(get(front.perch.admin(), "/livez").status, 200);
    let metrics = front.perch.admin_get("/metrics").text();
    assert!(!metrics.contains("perch_upstream_failures_total{"), "{metrics}");
    assert!(metrics.contains("perch_endpoints{service=\"app\",version=\"stable\",state=\"ready\"} 1"), "{metrics}");
    assert!(!front.perch.stderr().contains("sign of life"), "{}", front.perch.stderr());
}

/// Stops one thread as a debugger does, says so, and lets go when its input ends.
const STOP_THREAD: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
thread = int(sys.argv[1])
if libc.ptrace(16, thread, None, None) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, 0x40000000)
print('stopped', flush=True)
sys.stdin.read()
libc.ptrace(17, thread, None, None)
";

#[test]
fn a_blocked_worker_is_told_and_liveness_fails_until_it_is_back() {
    let front = front();
    let is_worker = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "worker-1")
    };
    // A thread takes its name when it first runs.
    let worker = eventually_some(PATIENCE, || {
        let mut tasks = std::fs::read_dir(format!("/proc/{}/task", front.perch.pid())).unwrap();
        tasks.find_map(|task| task.ok().filter(is_worker))
    });
    let thread = worker.file_name();
    let mut command = Command::new("python3");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut debugger = Process::start_with(command.arg("-c").arg(STOP_THREAD).arg(thread), reader.into());
    eventually(PATIENCE, || debugger.stdout().contains("stopped") || debugger.try_wait().is_some());
    if !debugger.stdout().contains("stopped") {
        eprintln!("no thread can be stopped here: {}", debugger.stderr());
        return;
    }

    eventually(PATIENCE, || front.perch.metric("perch_workers_blocked") == Some(1.0));
    eventually(PATIENCE, || front.perch.stderr().contains("A worker gives no sign of life"));
    eventually(PATIENCE, || get(front.perch.admin(), "/livez").status == 503);

    drop(writer);
    eventually(PATIENCE, || get(front.perch.admin(), "/livez").status == 200);
    assert_eq!(front.perch.metric("perch_workers_blocked"), Some(0.0));
    assert_eq!(front.client().get("a", "/").status, 200);
}

/// Whether this test may make namespaces; says so when not.
pub(crate) fn may_unshare(options: &[&str]) -> bool {
    let may = Command::new("unshare").args(options).arg("true").status().is_ok_and(|status| status.success());
    if !may {
        eprintln!("no namespaces here: unshare {options:?}");
    }
    may
}

#[test]
fn it_serves_as_nobody_on_a_read_only_root_without_proc() {
    if !may_unshare(&["--mount"]) {
        return;
    }
    let backend = TestBackend::named("up");
    let text = config("", "", &[backend.address()]);
    let launch = Launch::new(&text);
    let dir = launch.dir().to_owned();
    // Only the folder of the test can be written, by a user who owns nothing and may do nothing.
    let setup = format!(
        "set -e; chown -R 65534:65534 {dir}; mount --bind {dir} {dir}; mount -o remount,bind,ro /; umount -l /proc; \
         touch /not-writable 2>/dev/null && exit 9; \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \"$0\" \"$@\"",
        dir = dir.display()
    );
    let perch = launch.under("unshare", &["--mount", "--propagation=private", "sh", "-c", &setup]).start();

    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "up");
    assert_eq!(get(perch.admin(), "/readyz").status, 200);
    let rejected = perch.metric("perch_rejected_total{reason=\"no-route\"}");
    assert_eq!(rejected, Some(0.0), "metrics are served");
}

#[test]
fn without_free_local_ports_it_says_so_and_needs_none_for_kept_connections() {
    if !may_unshare(&["--net"]) {
        return;
    }
    // A network of its own with four ports for outgoing connections. Clients bring their own source ports.
    // One worker: kept connections are each worker's own.
    let text = "
workers: 1
admin: {address: '127.0.0.1:7900'}
accessLog: {format: off}
listeners: [{name: http, address: '127.0.0.1:7000'}]
routes: [{service: app}]
services:
  - name: app
    retries: {minPerSecond: 1000}
    ejection: {consecutiveFailures: 0}
    versions: [{name: v, endpoints: ['127.0.0.1:7001']}]
";
    let launch = Launch::new(text);
    let script = format!(
        "ip link set lo up; echo '60000 60003' > /proc/sys/net/ipv4/ip_local_port_range
         {perch} backend hello --delay 2s --listen 127.0.0.1:7001 --health-listen 127.0.0.1:7002 & backend=$!
         {perch} serve --config {dir}/perch.yaml 2> {dir}/errors & perch=$!
         ask() {{ curl -s -o /dev/null -w '%{{http_code}} %header{{perch-reason}}\\n' --local-port $1-$(($1 + 9)) http://127.0.0.1:7000/version; }}
         for try in $(seq 100); do ask $((20000 + 10 * try)) | grep -q 200 && break; sleep 0.1; done
         echo ready
         for n in 1 2 3 4 5 6 7 8; do ask $((30000 + 10 * n)) & asked=\"$asked $!\"; done
         wait $asked
         echo again; ask 31000
         kill $backend $perch; wait",
        perch = env!("CARGO_BIN_EXE_perch"),
        dir = launch.dir().display()
    );
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    let (_, rest) = said.split_once("ready\n").unwrap_or_else(|| panic!("{said}{errors}"));
    let (at_once, again) = rest.split_once("again\n").unwrap();
    let count = |what: &str| at_once.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("200"), count("503 local-ports")), (4, 4), "{said}{errors}");
    assert!(again.starts_with("200"), "{said}");
}

//! A real API server: etcd and kube-apiserver from `KUBEBUILDER_ASSETS`, started with throwaway certificates and
//! stopped with the test; or the cluster of `PERCH_TEST_KUBECONFIG`, in namespaces that are deleted with the test. Without
//! either, these tests say so and do nothing. An API server refuses loopback endpoints, so endpoints are judged by
//! perch's own view; traffic is the double's part.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::cases;
use super::cluster::{Cluster, Endpoint, Slice, is_ready, wait_for};
use crate::support::{Process, eventually, write_certificate};

/// Both servers start in seconds on an idle machine; CI machines are not idle.
const START: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Real {
    /// Ours, if we started it: the API server first, as without etcd it would complain at length.
    _own: Option<(Process, Process)>,
    dir: tempfile::TempDir,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// The administrator's.
    cluster: Cluster,
    /// To be deleted in the end.
    namespaces: RefCell<Vec<String>>,
}

/// A port that was free a moment ago: these two programs can't be asked which one they took.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Real {
    fn start() -> Option<Self> {
        if let Some(kubeconfig) = std::env::var_os("PERCH_TEST_KUBECONFIG") {
            return Some(Self::running(PathBuf::from(kubeconfig)));
        }
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
            println!(
                "skipped: neither KUBEBUILDER_ASSETS (tests/kube/assets/build makes that folder) nor PERCH_TEST_KUBECONFIG is set"
            );
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let etcd_url = format!("http://127.0.0.1:{}", free_port());
        let peer_url = format!("http://127.0.0.1:{}", free_port());
        let etcd = Process::start(
            Command::new(assets.join("etcd"))
                .args(["--data-dir", &path("etcd"), "--unsafe-no-fsync", "--log-level", "error"])
                .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &format!("default={peer_url}")]),
        );
        let certificate = write_certificate(dir.path(), "api", &["localhost"]);
        let service_accounts = rcgen::KeyPair::generate().unwrap();
        std::fs::write(path("sa.key"), service_accounts.serialize_pem()).unwrap();
        std::fs::write(path("sa.pub"), service_accounts.public_key_pem()).unwrap();
        let users = "secret,admin,1,\"system:masters\"\n\
                     perch,system:serviceaccount:lab:perch,2,\"system:serviceaccounts,system:serviceaccounts:lab\"\n";
        std::fs::write(path("tokens.csv"), users).unwrap();
        let port = free_port();
        let api = Process::start(
            Command::new(assets.join("kube-apiserver"))
                .args(["--etcd-servers", &etcd_url, "--bind-address", "127.0.0.1"])
                .args(["--secure-port", &port.to_string(), "--cert-dir", &path("certs")])
                .args(["--tls-cert-file", certificate.cert_file.to_str().unwrap()])
                .args(["--tls-private-key-file", certificate.key_file.to_str().unwrap()])
                .args(["--token-auth-file", &path("tokens.csv"), "--authorization-mode", "RBAC"])
                .args(["--service-account-issuer", "https://localhost", "--service-cluster-ip-range", "10.0.0.0/24"])
                .args(["--service-account-key-file", &path("sa.pub")])
                .args(["--service-account-signing-key-file", &path("sa.key")])
                // Nobody makes the ServiceAccounts that pods want.
                .args(["--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"]),
        );
        let cluster = Cluster {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            host: "localhost".into(),
            ca: Some(format!("certificate-authority: '{}'", certificate.cert_file.display())),
            token: "secret".into(),
            perch_token: "secret".into(),
            namespace: "default".into(),
        };
        let kubeconfig = dir.path().join("admin");
        cluster.write_kubeconfig(&kubeconfig);
        let (mut api, mut etcd) = (api, etcd);
        eventually(START, || {
            assert!(api.try_wait().is_none(), "{}", api.stderr());
            assert!(etcd.try_wait().is_none(), "{}", etcd.stderr());
            cluster.speaks_tls() && cluster.request("GET", "/readyz", None).status == 200
        });
        let kubectl = kubectl_in(&assets);
        Some(Self { _own: Some((api, etcd)), dir, kubectl, kubeconfig, cluster, namespaces: RefCell::default() })
    }

    /// A cluster that somebody else runs. We need to be its administrator: perch gets a Role there.
    fn running(kubeconfig: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubectl = kubectl_in(&std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default());
        let nowhere = Cluster {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            host: String::new(),
            ca: None,
            token: String::new(),
            perch_token: String::new(),
            namespace: "default".into(),
        };
        let namespaces = RefCell::default();
        let mut real = Self { _own: None, dir, kubectl, kubeconfig, cluster: nowhere, namespaces };
        let view = real.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "--output", "json"]);
        let view: Value = serde_json::from_str(&view).unwrap();
        let of = &view["clusters"][0]["cluster"];
        let server = of["server"].as_str().unwrap().strip_prefix("https://").expect("a server with https");
        let server = server.trim_end_matches('/').to_owned();
        let with_port = if server.contains(':') { server.clone() } else { format!("{server}:443") };
        let (host, _) = with_port.rsplit_once(':').unwrap();
        let ca = of["certificate-authority-data"].as_str().expect("a CA in the kubeconfig");
        // The tests' own requests carry a token, whatever the kubeconfig has.
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let own = format!("perch-test-{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
        real.kubectl(&["create", "namespace", &own]);
        real.namespaces.borrow_mut().push(own.clone());
        real.kubectl(&["create", "serviceaccount", "admin", "--namespace", &own]);
        let subject = format!("--serviceaccount={own}:admin");
        real.kubectl(&["create", "clusterrolebinding", &own, "--clusterrole=cluster-admin", &subject]);
        let token = real.kubectl(&["create", "token", "admin", "--namespace", &own, "--duration=1h"]);
        let token = token.trim().to_owned();
        real.cluster = Cluster {
            address: with_port.to_socket_addrs().unwrap().next().expect("an address of the API server"),
            host: host.trim_matches(['[', ']']).into(),
            ca: Some(format!("certificate-authority-data: {ca}")),
            token: token.clone(),
            perch_token: token,
            namespace: own,
        };
        real
    }

    fn namespace(&self, name: &str) -> Cluster {
        self.kubectl(&["create", "namespace", name]);
        self.namespaces.borrow_mut().push(name.to_owned());
        if self._own.is_none() {
            // Without it, no pod is taken.
            eventually(START, || self.try_kubectl(&["get", "serviceaccount", "default", "--namespace", name]).is_ok());
        }
        Cluster { namespace: name.into(), ..self.cluster.clone() }
    }

    /// Runs kubectl as the administrator; its output.
    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let done =
            Command::new(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
    }

    /// perch's own token, when there is a ServiceAccount for it.
    fn perch_token(&self, namespace: &str) -> String {
        if self._own.is_some() {
            return "perch".into();
        }
        self.kubectl(&["create", "serviceaccount", "perch", "--namespace", namespace]);
        self.kubectl(&["create", "token", "perch", "--namespace", namespace]).trim().to_owned()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if self._own.is_some() {
            return;
        }
        // On somebody else's cluster nothing may be left behind.
        for name in self.namespaces.borrow().iter() {
            let done = self.try_kubectl(&["delete", "namespace", name, "--wait=false"]);
            println!("deleting namespace {name}: {done:?}");
        }
        let binding = self.namespaces.borrow().first().cloned().unwrap_or_default();
        self.try_kubectl(&["delete", "clusterrolebinding", &binding]).ok();
    }
}

fn kubectl_in(assets: &Path) -> PathBuf {
    let own = assets.join("kubectl");
    if own.exists() { own } else { PathBuf::from("kubectl") }
}

fn manifests(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(folder).to_str().unwrap().to_owned()
}

#[test]
fn every_case_holds_against_a_real_api_server() {
    let Some(real) = Real::start() else { return };

    for (number, (name, case)) in cases::ALL.iter().enumerate() {
        println!("case: {name}");
        case(&real.namespace(&format!("perch-case-{}-{number}", std::process::id())));
    }
}

#[test]
fn a_real_api_server_takes_the_manifests_and_their_role_is_enough() {
    let Some(real) = Real::start() else { return };
    let lab = real.namespace("lab");
    // As in the README: the certificate is made by a command.
    let certificate = write_certificate(real.dir.path(), "tls", &["localhost"]);
    let (cert, key) = (certificate.cert_file.to_str().unwrap(), certificate.key_file.to_str().unwrap());
    real.kubectl(&[
        "create",
        "secret",
        "generic",
        "tls-certs",
        "--namespace",
        "lab",
        &format!("--from-file=cert.pem={cert}"),
        &format!("--from-file=key.pem={key}"),
    ]);

    for folder in ["kubernetes", "lab", "lab/overlays/canary", "lab/overlays/blue-green"] {
        let said =
            real.kubectl(&["apply", "--namespace", "lab", "--dry-run=server", "--kustomize", &manifests(folder)]);
        println!("{folder}:\n{said}");
        assert!(said.contains("server dry run"), "{said}");
    }

    // Perch as its ServiceAccount, first without the Role.
    let as_perch = Cluster { perch_token: real.perch_token("lab"), ..lab.clone() };
    let uid = lab.pod("hello-1", &[("app", "hello"), ("track", "stable")]);
    lab.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "hello-1").uid(&uid)]));
    lab.service("hello", &json!({"sessionAffinity": "ClientIP"}));
    let versions = "{name: stable, kubernetes: {service: hello, port: http, podLabels: {track: stable}}}";
    let more = "    affinity: {from: service}\nkubernetes: {state: {configMap: perch-state, leaseDuration: 2s}}\n";
    let perch = as_perch.launch(versions, more).start();
    eventually(START, || {
        perch.metric("perch_kubernetes_sync_errors_total{reason=\"forbidden\"}").is_some_and(|n| n >= 3.0)
    });
    assert!(!is_ready(&perch));

    real.kubectl(&["apply", "--namespace", "lab", "--kustomize", &manifests("kubernetes")]);

    eventually(START, || is_ready(&perch));
    wait_for(&perch, "stable", &["10.1.0.1:80"]);
    let set = || perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"stable": 7}}));
    eventually(START, || set().status == 200);
    eventually(START, || perch.metric("perch_kubernetes_leader") == Some(1.0));
    // Applied once more, the manifests leave what perch wrote.
    real.kubectl(&["apply", "--namespace", "lab", "--kustomize", &manifests("kubernetes")]);
    let state = real.kubectl(&["get", "configmap", "perch-state", "--namespace", "lab", "--output", "yaml"]);
    assert!(state.contains("rollouts.json") && state.contains("replica."), "{state}");
    // And nothing beyond that.
    for (path, status) in [
        ("endpointslices", 403),
        ("pods/hello-1", 403),
        ("secrets", 403),
        ("configmaps", 403),
        ("configmaps/perch", 403),
        ("configmaps/perch-state", 200),
    ] {
        let group = if path == "endpointslices" { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
        let method = if path == "endpointslices" { "DELETE" } else { "GET" };
        let itself = Cluster { token: as_perch.perch_token.clone(), ..lab.clone() };
        let answer = itself.request(method, &format!("{group}/namespaces/lab/{path}"), None);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
}

#[test]
fn every_folder_of_manifests_builds() {
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        println!("skipped: KUBEBUILDER_ASSETS is not set");
        return;
    };
    let build = |folder: &str| {
        let done = Command::new(kubectl_in(&assets)).args(["kustomize", folder]).output().unwrap();
        assert!(done.status.success(), "{folder}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };

    for folder in ["kubernetes", "lab", "lab/overlays/canary", "lab/overlays/blue-green"] {
        let built = build(&manifests(folder));
        let objects = built.matches("\nkind: ").count();
        let labelled = built.matches("app.kubernetes.io/part-of: lab").count();
        assert!(objects >= 8 && labelled >= objects, "{folder}: {labelled} labels of {objects} objects");
        assert!(built.contains("name: perch-state"), "{folder}");
    }
    // With what is optional.
    let copy = tempfile::tempdir().unwrap();
    for name in ["", "podmonitor"] {
        let from = PathBuf::from(manifests("kubernetes")).join(name);
        std::fs::create_dir_all(copy.path().join(name)).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(|f| f.unwrap().path()).filter(|f| f.is_file()) {
            std::fs::copy(&file, copy.path().join(name).join(file.file_name().unwrap())).unwrap();
        }
    }
    let file = copy.path().join("kustomization.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("# components:\n#   - podmonitor", "components:\n  - podmonitor")).unwrap();
    assert!(build(copy.path().to_str().unwrap()).contains("kind: PodMonitor"));
}

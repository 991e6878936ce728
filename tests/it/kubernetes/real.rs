//! A real API server: etcd and kube-apiserver from `KUBEBUILDER_ASSETS`, started with throwaway certificates and
//! stopped with the test. Without that folder these tests say so and do nothing. Nobody runs controllers or nodes, and
//! the server refuses loopback endpoints, so endpoints are judged by perch's own view; traffic is the double's part.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::cases;
use super::cluster::{Cluster, Endpoint, Slice, is_ready, wait_for};
use crate::support::{Process, eventually, write_certificate};

/// Both servers start in seconds on an idle machine; CI machines are not idle.
const START: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Real {
    // The API server first: without etcd it would complain at length.
    _api: Process,
    _etcd: Process,
    dir: tempfile::TempDir,
    assets: PathBuf,
    cluster: Cluster,
}

/// A port that was free a moment ago: these two programs can't be asked which one they took.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Real {
    fn start() -> Option<Self> {
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
            println!("skipped: KUBEBUILDER_ASSETS is not set (tests/kube/assets/build makes that folder)");
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
            ca_file: Some(certificate.cert_file.to_str().unwrap().to_owned()),
            token: "secret".into(),
            perch_token: "secret".into(),
            namespace: "default".into(),
        };
        let mut real = Self { _api: api, _etcd: etcd, dir, assets, cluster };
        eventually(START, || {
            assert!(real._api.try_wait().is_none(), "{}", real._api.stderr());
            assert!(real._etcd.try_wait().is_none(), "{}", real._etcd.stderr());
            real.cluster.speaks_tls() && real.cluster.request("GET", "/readyz", None).status == 200
        });
        Some(real)
    }

    fn namespace(&self, name: &str) -> Cluster {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let made = self.cluster.request("POST", "/api/v1/namespaces", Some(&namespace));
        assert!(made.status < 300, "{made:?}");
        Cluster { namespace: name.into(), ..self.cluster.clone() }
    }

    /// Runs kubectl as the administrator; its output.
    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        let kubeconfig = self.dir.path().join("admin");
        self.cluster.write_kubeconfig(&kubeconfig);
        let own = self.assets.join("kubectl");
        let program = if own.exists() { own } else { PathBuf::from("kubectl") };
        let done = Command::new(program).arg("--kubeconfig").arg(kubeconfig).args(arguments).output().unwrap();
        assert!(done.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

fn manifests(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(folder).to_str().unwrap().to_owned()
}

#[test]
fn every_case_holds_against_a_real_api_server() {
    let Some(real) = Real::start() else { return };

    for (number, (name, case)) in cases::ALL.iter().enumerate() {
        println!("case: {name}");
        case(&real.namespace(&format!("case-{number}")));
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
    let as_perch = Cluster { perch_token: "perch".into(), ..lab.clone() };
    let uid = lab.pod("hello-1", &[("app", "hello"), ("track", "stable")]);
    lab.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "hello-1").uid(&uid)]));
    lab.service("hello", &json!({"sessionAffinity": "ClientIP"}));
    let versions = "{name: stable, kubernetes: {service: hello, port: http, podLabels: {track: stable}}}";
    let perch = as_perch.launch(versions, "    affinity: {from: service}\n").start();
    eventually(START, || {
        perch.metric("perch_kubernetes_sync_errors_total{reason=\"forbidden\"}").is_some_and(|n| n >= 3.0)
    });
    assert!(!is_ready(&perch));

    real.kubectl(&["apply", "--namespace", "lab", "--kustomize", &manifests("kubernetes")]);

    eventually(START, || is_ready(&perch));
    wait_for(&perch, "stable", &["10.1.0.1:80"]);
    // And nothing beyond that.
    for (path, status) in [("endpointslices", 403), ("pods/hello-1", 403), ("secrets", 403)] {
        let group = if path == "endpointslices" { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
        let method = if path == "endpointslices" { "DELETE" } else { "GET" };
        let as_perch = Cluster { token: "perch".into(), ..lab.clone() };
        let answer = as_perch.request(method, &format!("{group}/namespaces/lab/{path}"), None);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
}

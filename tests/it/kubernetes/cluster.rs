//! A cluster as the tests see it, double or real: an API server's address, how to speak to it, and a namespace. Objects
//! are made, replaced and deleted by the same requests against both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Client, Launch, PATIENCE, Response, TestPerch, eventually, replace_file, tls_config};

/// A namespace of an API server.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) address: SocketAddr,
    /// What its certificate says.
    pub(super) host: String,
    /// With TLS, and this CA, in a kubeconfig's words; without, plain HTTP.
    pub(super) ca: Option<String>,
    /// The tests' own.
    pub(super) token: String,
    pub(super) perch_token: String,
    pub(super) namespace: String,
}

/// A slice to be: what it is called, whose it is, and its endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    pub(super) name: String,
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint {
    pub(super) address: String,
    /// Its name; the uid is derived from it, or the real one is looked up.
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

impl Endpoint {
    pub(super) fn ready(address: &str, pod: &str) -> Self {
        let uid = format!("uid-{pod}");
        Self { address: address.into(), pod: pod.into(), uid, ready: Some(true), ..Self::default() }
    }

    pub(super) fn unready(self) -> Self {
        Self { ready: Some(false), ..self }
    }

    pub(super) fn terminating(self) -> Self {
        Self { ready: Some(false), serving: Some(true), terminating: Some(true), ..self }
    }

    pub(super) fn uid(self, uid: &str) -> Self {
        Self { uid: uid.into(), ..self }
    }
}

impl Slice {
    pub(super) fn of(service: &str, name: &str, port: u16, endpoints: &[Endpoint]) -> Self {
        Self { name: name.into(), service: service.into(), port, endpoints: endpoints.to_vec() }
    }

    pub(super) fn json(&self) -> Value {
        let v6 = self.endpoints.iter().any(|e| e.address.contains(':'));
        let endpoint = |e: &Endpoint| {
            let mut conditions = serde_json::Map::new();
            for (name, value) in [("ready", e.ready), ("serving", e.serving), ("terminating", e.terminating)] {
                conditions.extend(value.map(|v| (name.to_owned(), v.into())));
            }
            let target = (!e.pod.is_empty()).then(|| json!({"kind": "Pod", "name": e.pod, "uid": e.uid}));
            json!({"addresses": [e.address], "conditions": conditions, "targetRef": target})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/service-name": self.service}},
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "endpoints": self.endpoints.iter().map(endpoint).collect::<Value>(),
            "ports": [{"name": "http", "port": self.port, "protocol": "TCP"}],
        })
    }
}

impl Cluster {
    /// One request with a JSON body, if any.
    #[track_caller]
    pub(super) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let mut client = match self.ca {
            None => Client::plain(self.address),
            Some(_) => self.tls().unwrap(),
        };
        let body = body.map(ToString::to_string).unwrap_or_default();
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.host,
            self.token,
            body.len()
        ));
        client.response()
    }

    /// It may be starting.
    pub(super) fn speaks_tls(&self) -> bool {
        self.tls().is_ok()
    }

    fn tls(&self) -> std::io::Result<Client> {
        let from = if self.address.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        Client::try_tls(IpAddr::V4(from), self.address, &self.host, tls_config(&[b"http/1.1"]))
    }

    fn path(&self, kind: &str) -> String {
        let group = if kind == "endpointslices" { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
        format!("{group}/namespaces/{}/{kind}", self.namespace)
    }

    /// Makes an object, or replaces the one of its name; as the server has it then.
    #[track_caller]
    pub(super) fn put(&self, kind: &str, object: &Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap();
        let one = format!("{}/{name}", self.path(kind));
        // In a cluster with controllers others write, too.
        for _ in 0..20 {
            let before = self.request("GET", &one, None);
            let done = if before.status == 404 {
                self.request("POST", &self.path(kind), Some(object))
            } else {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = before.json()["metadata"]["resourceVersion"].clone();
                self.request("PUT", &one, Some(&object))
            };
            if done.status != 409 {
                assert!(done.status < 300, "{done:?}");
                return done.json();
            }
        }
        panic!("others change {kind}/{name} all the time");
    }

    #[track_caller]
    pub(super) fn delete(&self, kind: &str, name: &str) {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        let done = self.request("DELETE", &format!("{}/{name}", self.path(kind)), Some(&options));
        assert!(done.status < 300, "{done:?}");
    }

    #[track_caller]
    pub(super) fn slice(&self, slice: &Slice) {
        self.put("endpointslices", &slice.json());
    }

    /// A pod with labels; its uid.
    #[track_caller]
    pub(super) fn pod(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let path = format!("{}/{name}", self.path("pods"));
        let known = self.request("GET", &path, None);
        // Most of a pod can't be changed; its labels can.
        let pod = if known.status == 200 {
            let mut pod = known.json();
            pod["metadata"]["labels"] = json!(labels);
            pod
        } else {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels},
                "spec": {"containers": [{"name": "hello", "image": "example.com/hello:1"}]},
            })
        };
        self.put("pods", &pod)["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn service(&self, name: &str, spec: &Value) {
        let mut spec = spec.clone();
        spec["ports"] = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]);
        self.put("services", &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}));
    }

    /// What perch needs to find it.
    pub(super) fn write_kubeconfig(&self, file: &Path) {
        let cluster = match &self.ca {
            None => format!("{{server: 'http://{}'}}", self.address),
            Some(ca) => {
                let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
                format!("{{server: 'https://{host}:{}', {ca}}}", self.address.port())
            }
        };
        replace_file(
            file,
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters: [{{name: test, cluster: {cluster}}}]\nusers: [{{name: test, user: {{token: {}}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test, namespace: {}}}}}]\n",
                self.perch_token, self.namespace
            ),
        );
    }

    /// A perch to be that follows this cluster. `versions` and `more` are of the service `hello`.
    pub(super) fn launch(&self, versions: &str, more: &str) -> Launch {
        let launch = Launch::new(&config(versions, more));
        let kubeconfig = launch.dir().join("kubeconfig");
        self.write_kubeconfig(&kubeconfig);
        launch.arg("--kubeconfig").arg(kubeconfig.to_str().unwrap()).arg("--watch-timeout").arg("2s")
    }

    /// A ready perch that follows this cluster.
    #[track_caller]
    pub(super) fn perch(&self, versions: &str, more: &str) -> TestPerch {
        let perch = self.launch(versions, more).start();
        eventually(PATIENCE, || is_ready(&perch));
        perch
    }
}

/// A configuration with one service, `hello`.
pub(super) fn config(versions: &str, more: &str) -> String {
    format!(
        "workers: 1\nadmin: {{address: '127.0.0.1:0'}}\naccessLog: {{format: 'off'}}\nlisteners: [{{name: http, address: '127.0.0.1:0'}}]\nroutes: [{{service: hello}}]\nservices:\n  - name: hello\n    versions: [{versions}]\n{more}"
    )
}

pub(super) fn is_ready(perch: &TestPerch) -> bool {
    perch.admin_get("/readyz").status == 200
}

/// The endpoints of a version that are not called `not-ready`: `10.0.0.1:80`, with the state behind when it isn't `ready`.
pub(super) fn endpoints(perch: &TestPerch, version: &str) -> Vec<String> {
    let services = perch.admin_json("/api/v1/services");
    let versions = services["services"][0]["versions"].as_array().unwrap().clone();
    let version = versions.iter().find(|v| v["name"] == version).unwrap();
    let shown = |e: &Value| match e["state"].as_str().unwrap() {
        "ready" => e["address"].as_str().unwrap().to_owned(),
        state => format!("{} {state}", e["address"].as_str().unwrap()),
    };
    version["endpoints"].as_array().unwrap().iter().filter(|e| e["state"] != "not-ready").map(shown).collect()
}

/// Waits until a version has these endpoints.
#[track_caller]
pub(super) fn wait_for(perch: &TestPerch, version: &str, expected: &[&str]) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let found = endpoints(perch, version);
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < end, "{version} still has {found:?}, not {expected:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

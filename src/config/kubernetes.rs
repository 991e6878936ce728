//! What a file says about Kubernetes: the Service behind a version, and the Service that affinity is read from. Names
//! are held to Kubernetes' own rules, so that a typo is found here and not by a server that never finds the object.

use std::collections::BTreeMap;

use super::decode::{Map, Node};
use super::model::{KubernetesPort, KubernetesService, KubernetesSource, Version};
use super::scalar::shown;

/// `kubernetes: {service, port, namespace, podLabels}` of a version.
pub(super) fn source(node: &Node<'_>) -> Option<KubernetesSource> {
    let mut map = node.map()?;
    let name = map.need("service", "the name of a Service").and_then(|n| service_name(&n));
    let port = map.need("port", "the name of a port of the Service, or the number of the pods' port");
    let port = port.and_then(|n| n.read("a port's name, such as http, or a number from 1 to 65535", port_ref));
    let namespace = map.take("namespace").map(|n| n.read("a namespace", dns_label));
    let labels = map.take("podLabels").map(|n| pod_labels(&n));
    map.finish();
    Some(KubernetesSource {
        service: KubernetesService { namespace: optional(namespace)?, name: name? },
        port: port?,
        pod_labels: optional(labels)?.unwrap_or_default(),
    })
}

/// The Service that `affinity: {from: service}` means: the one it names, or the only one behind the versions.
pub(super) fn affinity_service(map: &mut Map<'_>, versions: Option<&[Version]>) -> Option<KubernetesService> {
    let service = map.take("service");
    let namespace = map.take("namespace").map(|n| n.read("a namespace", dns_label));
    if let Some(node) = service {
        return Some(KubernetesService { name: service_name(&node)?, namespace: optional(namespace)? });
    }
    if let Some(Some(_)) = namespace {
        map.problem("has a namespace without a service; write both, or neither");
        return None;
    }
    // When the versions can't be read, nobody can say which Service they have.
    let mut found: Vec<&KubernetesService> =
        versions?.iter().filter_map(|v| v.kubernetes.as_ref()).map(|k| &k.service).collect();
    found.dedup();
    match found.as_slice() {
        [one] => Some((*one).clone()),
        [] => {
            map.problem("no version has a Service to read affinity from; write service, the name of one");
            None
        }
        _ => {
            map.problem("the versions have several Services; write service, the one to read affinity from");
            None
        }
    }
}

/// A key that may be left out, but not be wrong.
fn optional<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

/// The name of another object that perch uses.
pub(super) fn object_name(node: &Node<'_>, kind: &str) -> Option<String> {
    node.read(&format!("the name of a {kind}, such as perch-state"), dns_label)
}

fn service_name(node: &Node<'_>) -> Option<String> {
    node.read("the name of a Service, such as hello", dns_label)
}

fn pod_labels(node: &Node<'_>) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut valid = true;
    let entries = node.map()?.drain();
    if entries.is_empty() {
        node.problem("has no labels; write one, such as track: canary, or leave podLabels out");
    }
    for (key, node) in entries {
        if let Err(what) = label_key(&key) {
            node.problem(format!("{what}; write a label's key, such as track or example.com/track"));
            valid = false;
        }
        match node.read("a label's value, such as canary", label_value) {
            Some(value) => drop(labels.insert(key, value)),
            None => valid = false,
        }
    }
    (valid && !labels.is_empty()).then_some(labels)
}

fn port_ref(text: &str) -> Result<KubernetesPort, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(number) if number > 0 => Ok(KubernetesPort::Number(number)),
            _ => Err(format!("{text} is no port")),
        };
    }
    dns_label(text).map(KubernetesPort::Name)
}

/// RFC 1123's label, as Kubernetes has it for the names of Services, ports and namespaces.
fn dns_label(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good =
        (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
    if good { Ok(text.to_owned()) } else { Err(format!("{} is not a name in Kubernetes", shown(text))) }
}

/// `track`, or with a DNS name in front: `example.com/track`.
fn label_key(text: &str) -> Result<(), String> {
    let bad = || Err(format!("{} is not a label's key", shown(text)));
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let good = prefix.is_none_or(|p| p.len() <= 253 && p.split('.').all(|label| dns_label(label).is_ok()));
    if good && !name.is_empty() && is_label_text(name) { Ok(()) } else { bad() }
}

fn label_value(text: &str) -> Result<String, String> {
    if is_label_text(text) { Ok(text.to_owned()) } else { Err(format!("{} is not a label's value", shown(text))) }
}

fn is_label_text(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && ends(text.chars().next())
        && ends(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Affinity, Config, dump, parse};
    use super::*;

    fn problems(versions: &str, affinity: &str) -> Vec<String> {
        match read(versions, affinity) {
            Ok(_) => Vec::new(),
            Err(problems) => problems,
        }
    }

    fn read(versions: &str, affinity: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "listeners: [{{name: http, address: '127.0.0.1:0'}}]\nroutes: [{{service: hello}}]\nservices:\n- name: hello\n  affinity: {affinity}\n  versions: [{versions}]\n"
        );
        parse(&text, Path::new(""), &|_| None)
            .map(|loaded| loaded.config)
            .map_err(|invalid| invalid.problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect())
    }

    const CANARY: &str = "{name: canary, kubernetes: {service: hello, port: http, podLabels: {track: canary}}}";

    #[test]
    fn a_version_takes_its_endpoints_from_a_service() {
        let config = read(
            "{name: a, weight: 1, kubernetes: {service: hello, port: 8080, namespace: lab}}, \
             {name: b, weight: 1, kubernetes: {service: hello, port: http, podLabels: {track: canary, example.com/x: y}}}",
            "ClientIP",
        )
        .unwrap();

        let shown: Vec<String> =
            config.services[0].versions.iter().map(|v| format!("{}", v.kubernetes.as_ref().unwrap())).collect();
        assert_eq!(
            shown,
            ["Service lab/hello, port 8080", "Service hello, port http, pods example.com/x=y,track=canary"]
        );
    }

    #[test]
    fn endpoints_and_kubernetes_exclude_each_other() {
        assert_eq!(
            problems("{name: a, endpoints: ['10.0.0.1:80'], kubernetes: {service: hello, port: http}}", "ClientIP"),
            ["services[0].versions[0].kubernetes: stands beside endpoints; write one of the two"]
        );
        assert_eq!(
            problems("{name: a}", "ClientIP"),
            [
                "services[0].versions[0]: has no endpoints; write endpoints, a list such as [\"10.0.0.7:80\"], or kubernetes"
            ]
        );
    }

    #[test]
    fn every_wrong_name_is_reported_at_once() {
        let found = problems(
            "{name: a, kubernetes: {service: Hello, port: 70000, namespace: -x, podLabels: {a b: c, d: e/f}, ports: 1}}",
            "ClientIP",
        );

        let paths: Vec<&str> = found.iter().map(|p| p.split(": ").next().unwrap()).collect();
        let base = "services[0].versions[0].kubernetes";
        assert_eq!(
            paths,
            [".service", ".port", ".namespace", ".podLabels[\"a b\"]", ".podLabels.d", ".ports"]
                .map(|k| format!("{base}{k}")),
            "{found:#?}"
        );
    }

    #[test]
    fn affinity_comes_from_the_only_service() {
        let config = read(CANARY, "{from: service, ipv4Prefix: 24}").unwrap();

        let hello = &config.services[0];
        assert_eq!(hello.affinity_from, Some(KubernetesService { namespace: None, name: "hello".into() }));
        assert!(matches!(hello.affinity, Affinity::ClientIp { prefix, .. } if prefix.v4() == 24));
    }

    #[test]
    fn affinity_from_one_of_several_services_must_say_which() {
        let versions = "{name: a, weight: 1, kubernetes: {service: one, port: 80}}, {name: b, weight: 1, kubernetes: {service: two, port: 80}}";

        assert_eq!(
            problems(versions, "{from: service}"),
            ["services[0].affinity: the versions have several Services; write service, the one to read affinity from"]
        );
        assert!(read(versions, "{from: service, service: two}").is_ok());
        assert_eq!(
            problems("{name: a, endpoints: ['10.0.0.1:80']}", "{from: service}"),
            ["services[0].affinity: no version has a Service to read affinity from; write service, the name of one"]
        );
    }

    #[test]
    fn a_dump_loads_again_and_is_the_same() {
        let config = read(CANARY, "{from: service}").unwrap();

        let again = parse(&dump(&config).to_string(), Path::new(""), &|_| None).unwrap().config;

        assert_eq!(again, config);
    }
}

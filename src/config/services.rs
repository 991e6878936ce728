//! The `services` of a file: versions, weights, affinity and what protects the endpoints.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};

use super::decode::Node;
use super::defaults;
use super::file::{Named, Names, TIMEOUT, unique_name};
use super::kubernetes;
use super::listeners::all_networks;
use super::model::{
    Affinity, Ejection, EndpointAddress, HealthCheck, KubernetesService, OnDecrease, Overrides, Retries, Secret,
    Service, ServiceLimits, ServiceTimeouts, Version,
};
use super::rollout;
use super::scalar::{self, shown};
use super::transport;
use crate::decide::{KeyPrefix, Weight, WhenEmpty};

/// The split's own bound.
const MAX_VERSIONS: usize = 1_000;
/// What overrides say instead of a version's name.
const OVERRIDE_WORDS: [&str; 2] = ["always", "never"];
const ENDPOINTS: &str = "addresses such as 10.0.0.7:80";
/// A drain may take a week: clients of long sessions.
const DRAIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

pub(super) fn decode<'a>(nodes: &[Node<'a>]) -> Vec<Named<'a, Service>> {
    let mut names = Names::new();
    nodes
        .iter()
        .map(|node| {
            let (name, value) = service(node, &mut names).unzip();
            Named { node: node.clone(), name: name.flatten(), value: value.flatten() }
        })
        .collect()
}

fn service(node: &Node<'_>, names: &mut Names) -> Option<(Option<String>, Option<Service>)> {
    let mut map = node.map()?;
    let name = unique_name(&mut map, names);
    let closed = map.boolean("closed", false);
    let transport = transport::take(&mut map);
    let versions = map.need("versions", "a list of versions").and_then(|n| versions(&n, closed, &transport));
    let (affinity, affinity_from) =
        map.take("affinity").and_then(|n| affinity(&n, versions.as_deref())).unwrap_or_default();
    let decrease = map.take("onDecrease");
    let on_decrease = decrease.as_ref().and_then(on_decrease).unwrap_or(OnDecrease::Evict);
    if let (Some(node), Affinity::None, OnDecrease::Drain { .. } | OnDecrease::Freeze) =
        (&decrease, affinity, on_decrease)
    {
        node.warn("has no effect with affinity None, as nobody is remembered; write evict, or affinity ClientIP");
    }
    let overrides = map.take("overrides").and_then(|n| overrides(&n, versions.as_deref()));
    let rollout = map.take("rollout").map(|n| rollout::decode(&n, versions.as_deref())).unwrap_or_default();
    let when_empty = [("fallback", WhenEmpty::Fallback), ("fail", WhenEmpty::Fail)];
    let service = Service {
        name: name.as_deref().unwrap_or_default().into(),
        cohort: map.take("cohort").and_then(|n| n.name()),
        salt: map.take("salt").and_then(|n| n.text("any text")).map(Secret),
        affinity,
        affinity_from,
        when_empty: map.take("whenEmpty").and_then(|n| n.word(&when_empty)).unwrap_or_default(),
        on_decrease,
        overrides,
        version_header: map.boolean("versionHeader", false),
        timeouts: map.take("timeouts").map_or_else(ServiceTimeouts::default, |n| timeouts(&n)),
        retries: map.take("retries").map_or_else(Retries::default, |n| retries(&n)),
        limits: map.take("limits").map_or_else(ServiceLimits::default, |n| limits(&n)),
        health: map.take("health").and_then(|n| health(&n)),
        ejection: map.take("ejection").map_or_else(Ejection::default, |n| ejection(&n)),
        slow_start: map.duration("slowStart", Duration::ZERO, Duration::ZERO..=*TIMEOUT.end()),
        rollout,
        versions: Vec::new(),
    };
    map.finish();
    let valid = name.is_some();
    let service = versions.filter(|_| valid).map(|versions| Service { versions, ..service });
    Some((name, service))
}

fn versions(node: &Node<'_>, closed: bool, transport: &transport::Keys) -> Option<Vec<Version>> {
    let nodes = node.filled_list("versions")?;
    if nodes.len() > MAX_VERSIONS {
        node.problem(format!("{} versions are too many; write at most {MAX_VERSIONS}", nodes.len()));
        return None;
    }
    let mut names = Names::new();
    let mut owners = HashMap::new();
    let decoded: Vec<Option<Version>> =
        nodes.iter().map(|n| version(n, nodes.len() == 1, closed, transport, &mut names, &mut owners)).collect();
    let versions = decoded.into_iter().collect::<Option<Vec<Version>>>()?;
    let all_zero = versions.iter().all(|v| v.weight.is_zero());
    if all_zero && !closed {
        node.problem("all weights are 0, so nobody would be served; write one above 0, or closed: true");
    }
    if closed && !all_zero {
        node.problem("the service is closed, but has a weight above 0; write weight: 0, or remove closed");
    }
    Some(versions)
}

fn version(
    node: &Node<'_>,
    only: bool,
    closed: bool,
    common: &transport::Keys,
    names: &mut Names,
    owners: &mut HashMap<EndpointAddress, usize>,
) -> Option<Version> {
    let mut map = node.map()?;
    let name_node = map.need("name", "a name")?;
    let name = name_node.name();
    if let Some(name) = &name {
        super::file::claim(&name_node, name, names);
        if OVERRIDE_WORDS.contains(&&**name) {
            name_node.problem(format!("{name} has a meaning of its own in overrides; write another name"));
        }
    }
    // Alone, any weight is everything. Among others, a forgotten one would be a share that nobody chose.
    let weight = if only { map.take("weight") } else { map.need("weight", "a number of 0 or more") };
    let weight = match weight {
        Some(node) => weight_of(&node),
        None if only && closed => Some(Weight::ZERO),
        None if only => Weight::new(1.0),
        None => None,
    };
    let own = transport::take(&mut map);
    let transport = transport::resolve(node, own, common);
    let (listed, kubernetes) = (map.take("endpoints"), map.take("kubernetes"));
    map.finish();
    match (&listed, &kubernetes) {
        (None, None) => {
            node.problem("has no endpoints; write endpoints, a list such as [\"10.0.0.7:80\"], or kubernetes")
        }
        (Some(_), Some(node)) => node.problem("stands beside endpoints; write one of the two"),
        (Some(_), None) | (None, Some(_)) => {}
    }
    let nodes = listed.and_then(|n| n.list(ENDPOINTS));
    if let Some(node) = &kubernetes {
        let kubernetes = kubernetes::source(node);
        let version = Version {
            name: Arc::from(name?),
            weight: weight?,
            endpoints: Vec::new(),
            kubernetes: Some(kubernetes?),
            transport,
        };
        return nodes.is_none().then_some(version);
    }
    let endpoints = nodes.as_deref().map(|nodes| endpoints(nodes, owners));
    let version =
        Version { name: Arc::from(name?), weight: weight?, endpoints: endpoints?, kubernetes: None, transport };
    if nodes.is_some_and(|nodes| nodes.is_empty()) && !version.weight.is_zero() {
        node.warn("has weight but no endpoints: its clients get what whenEmpty says; write endpoints, or weight: 0");
    }
    Some(version)
}

fn weight_of(node: &Node<'_>) -> Option<Weight> {
    node.number("a number of 0 or more", |number, text| {
        let weight = Weight::new(number);
        weight.ok_or_else(|| match number {
            n if n.is_nan() => format!("{text} is not a number"),
            n if n < 0.0 => format!("{text} is negative"),
            n if n.is_infinite() => format!("{text} is infinite"),
            n if n > Weight::MAX => format!("{text} is more than {}", Weight::MAX),
            _ => format!("{text} is too small (0.000001 is the smallest)"),
        })
    })
}

fn endpoints(nodes: &[Node<'_>], owners: &mut HashMap<EndpointAddress, usize>) -> Vec<EndpointAddress> {
    let mut mine = HashSet::new();
    let mut endpoints = Vec::new();
    for node in nodes {
        let Some(endpoint) = node.read("ip:port or name:port, such as 10.0.0.7:80", scalar::endpoint) else { continue };
        let line = *owners.entry(endpoint.clone()).or_insert(node.line());
        if !mine.insert(endpoint.clone()) {
            node.problem("is in this version already; write each endpoint once");
        } else if line != node.line() {
            node.warn(format!("also serves the version in line {line}: its users see both; write it in one version"));
        }
        endpoints.push(endpoint);
    }
    endpoints
}

/// What it is, and the Service that says it, if one does.
fn affinity(node: &Node<'_>, versions: Option<&[Version]>) -> Option<(Affinity, Option<KubernetesService>)> {
    let default = KeyPrefix::default();
    let with = |timeout, prefix| Affinity::ClientIp { prefix, timeout: Duration::from_secs(timeout) };
    let types = [("ClientIP", true), ("None", false)];
    if node.is_scalar() {
        let by_client = node.word(&types)?;
        return Some((if by_client { with(defaults::AFFINITY_SECONDS, default) } else { Affinity::None }, None));
    }
    let mut map = node.map()?;
    let from = map.take("from").is_some_and(|n| n.word(&[("service", ())]).is_some());
    if from {
        let [v4, v6] = ["ipv4Prefix", "ipv6Prefix"].map(|key| map.take(key));
        let service = kubernetes::affinity_service(&mut map, versions);
        map.finish();
        let v4 = v4.and_then(|n| n.integer(1..=32)).unwrap_or(default.v4());
        let v6 = v6.and_then(|n| n.integer(1..=128)).unwrap_or(default.v6());
        return Some((with(defaults::AFFINITY_SECONDS, KeyPrefix::new(v4, v6)?), Some(service?)));
    }
    let by_client = map.take("type").and_then(|n| n.word(&types)).unwrap_or(true);
    let keys = ["timeoutSeconds", "ipv4Prefix", "ipv6Prefix"].map(|key| map.take(key));
    if !by_client {
        for node in keys.iter().flatten() {
            node.problem("is for ClientIP only, and the type is None; remove it");
        }
        map.finish();
        return Some((Affinity::None, None));
    }
    let [timeout, v4, v6] = keys;
    let timeout = timeout.and_then(|n| n.integer(1..=86_400)).unwrap_or(defaults::AFFINITY_SECONDS);
    let v4 = v4.and_then(|n| n.integer(1..=32)).unwrap_or(default.v4());
    let v6 = v6.and_then(|n| n.integer(1..=128)).unwrap_or(default.v6());
    map.finish();
    Some((with(timeout, KeyPrefix::new(v4, v6)?), None))
}

fn on_decrease(node: &Node<'_>) -> Option<OnDecrease> {
    let drain = OnDecrease::Drain { deadline: defaults::DRAIN_DEADLINE };
    let words = [("evict", OnDecrease::Evict), ("drain", drain), ("freeze", OnDecrease::Freeze)];
    if node.is_scalar() {
        return node.word(&words);
    }
    let mut map = node.map()?;
    let word = map.need("type", "evict, drain or freeze").and_then(|n| n.word(&words));
    let deadline = map.take("deadline");
    map.finish();
    match (word?, deadline) {
        (OnDecrease::Drain { .. }, Some(node)) => Some(OnDecrease::Drain { deadline: node.duration(DRAIN)? }),
        (word, None) => Some(word),
        (OnDecrease::Evict | OnDecrease::Freeze, Some(node)) => {
            node.problem("is for drain only; remove it, or write type: drain");
            None
        }
    }
}

fn overrides(node: &Node<'_>, versions: Option<&[Version]>) -> Option<Overrides> {
    let mut map = node.map()?;
    let header_node = map.take("header");
    let cookie_node = map.take("cookie");
    if header_node.is_none() && cookie_node.is_none() {
        node.problem("has neither header nor cookie; write the name of one");
    }
    let header = header_node.and_then(|n| n.read("a header of your own, such as x-canary", override_header));
    let cookie = cookie_node.and_then(|n| {
        n.read("a cookie's name, such as canary", |text| {
            // RFC 6265: a token, as a header's name is.
            let bad = |_| format!("{} is not a cookie's name", shown(text));
            HeaderName::from_bytes(text.as_bytes()).map(|_| text.to_owned()).map_err(bad)
        })
    });
    let version_node = map.need("version", "the version that always and never speak of");
    let version = version_node.and_then(|n| {
        let name = n.name()?;
        // When the versions can't be read, nobody can say whether it is one of them.
        let versions = versions?;
        let found = versions.iter().position(|v| *v.name == *name);
        if found.is_none() {
            let names: Vec<&str> = versions.iter().map(|v| &*v.name).collect();
            n.problem(format!("{name} is no version of this service; write {}", names.join(" or ")));
        }
        found
    });
    let trusted = map.need("trusted", "the client networks that may choose").map(|n| all_networks(&n));
    map.finish();
    Some(Overrides { header, cookie, version: version?, trusted: trusted? })
}

fn override_header(text: &str) -> Result<HeaderName, String> {
    let name =
        HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{} is not a header's name", shown(text)))?;
    // Names with a job of their own, on the connection or in perch.
    let busy = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::COOKIE,
        header::AUTHORIZATION,
    ];
    if busy.contains(&name) { Err(format!("{name} has another job")) } else { Ok(name) }
}

fn timeouts(node: &Node<'_>) -> ServiceTimeouts {
    let mut t = ServiceTimeouts::default();
    let Some(mut map) = node.map() else { return t };
    t.connect = map.duration("connect", t.connect, TIMEOUT);
    t.response_head = map.duration("responseHead", t.response_head, TIMEOUT);
    t.body = map.duration("body", t.body, TIMEOUT);
    t.idle = map.duration("idle", t.idle, TIMEOUT);
    map.finish();
    t
}

fn retries(node: &Node<'_>) -> Retries {
    let mut r = Retries::default();
    let Some(mut map) = node.map() else { return r };
    r.budget_percent = map.integer("budgetPercent", r.budget_percent, 0..=100);
    r.min_per_second = map.integer("minPerSecond", r.min_per_second, 0..=1_000_000);
    map.finish();
    r
}

fn limits(node: &Node<'_>) -> ServiceLimits {
    let mut l = ServiceLimits::default();
    let Some(mut map) = node.map() else { return l };
    l.requests_per_endpoint = map.integer("requestsPerEndpoint", l.requests_per_endpoint, 0..=1_000_000);
    map.finish();
    l
}

fn health(node: &Node<'_>) -> Option<HealthCheck> {
    let mut map = node.map()?;
    let path = map.need("path", "a path, such as /healthz").and_then(|n| {
        n.read("a path, such as /healthz", |text| match text.as_bytes() {
            [b'/', rest @ ..] if rest.iter().all(|b| b.is_ascii_graphic() && *b != b'#') => Ok(text.to_owned()),
            _ => Err(format!("{} is not a path", shown(text))),
        })
    });
    let counts = 1..=1_000;
    let check = HealthCheck {
        path: path.as_deref().unwrap_or_default().to_owned(),
        port: map.take("port").and_then(|n| n.integer(1..=65_535)),
        interval: map.duration("interval", defaults::HEALTH_INTERVAL, Duration::from_millis(10)..=*TIMEOUT.end()),
        timeout: map.duration("timeout", defaults::HEALTH_TIMEOUT, TIMEOUT),
        rise: map.integer("rise", defaults::HEALTH_RISE, counts.clone()),
        fall: map.integer("fall", defaults::HEALTH_FALL, counts),
        panic_percent: map.integer("panicPercent", defaults::HEALTH_PANIC_PERCENT, 0..=100),
    };
    map.finish();
    path.map(|_| check)
}

fn ejection(node: &Node<'_>) -> Ejection {
    let mut e = Ejection::default();
    let Some(mut map) = node.map() else { return e };
    e.consecutive_failures = map.integer("consecutiveFailures", e.consecutive_failures, 0..=1_000_000);
    e.duration = map.duration("duration", e.duration, TIMEOUT);
    e.max_percent = map.integer("maxPercent", e.max_percent, 0..=100);
    map.finish();
    e
}

//! The whole file: the top-level keys, and what only shows when its parts are seen together.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::decode::{Map, Node};
use super::defaults;
use super::model::{AccessLog, Admin, Config, Drain, LogFormat, MemoryLimit, Pins, Secret, SharedState};
use super::scalar;
use super::{kubernetes, listeners, routes, services};

/// Of most timeouts: nothing in perch counts finer, and a longer one is a limit that someone meant to lift.
pub(super) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);
/// Of waits that may be left out altogether.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// The API counts it in whole seconds.
const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// A token file; a real token is some dozens of bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// A perch that has just started takes about as much.
const LEAST_MEMORY: u64 = 16 << 20;

/// Decodes the root of a tree; `None` when problems were reported.
pub(super) fn decode(root: &Node<'_>) -> Option<Config> {
    let mut map = root.map()?;
    let workers = map.take("workers").and_then(|n| n.integer(1..=1024));
    let admin = map.take("admin").map_or_else(Admin::default, |n| admin(&n));
    let access_log = map.take("accessLog").map_or_else(AccessLog::default, |n| access_log(&n));
    let drain = map.take("drain").map_or_else(Drain::default, |n| drain(&n));
    let (max_connections, memory) = map.take("limits").map(|n| limits(&n)).unwrap_or_default();
    let pins = map.take("affinity").and_then(|n| pins(&n)).unwrap_or_default();
    let state_dir = map.take("stateDir").and_then(|n| n.file());
    let shared_state = map.take("kubernetes").and_then(|n| shared_state(&n, state_dir.is_some()));
    let listeners = map.need("listeners", "a list of listeners").and_then(|n| n.filled_list("listeners"));
    let services = map.take("services").map_or(Some(Vec::new()), |n| n.list("services"));
    let routes = map.take("routes").map_or(Some(Vec::new()), |n| n.list("routes"));
    map.finish();

    let listeners = listeners.map(|nodes| listeners::decode(&nodes, admin.address));
    let services = services.map(|nodes| services::decode(&nodes));
    let routes = routes::decode(&routes?, listeners.as_deref(), services.as_deref());
    let (listeners, services) = (listeners?, services?);
    Some(Config {
        workers,
        admin,
        access_log,
        drain,
        max_connections: max_connections.unwrap_or(defaults::MAX_CONNECTIONS),
        memory: memory.unwrap_or_default(),
        pins,
        state_dir,
        shared_state,
        listeners: listeners.into_iter().map(|l| l.value).collect::<Option<_>>()?,
        routes: routes?,
        services: services.into_iter().map(|s| s.value).collect::<Option<_>>()?,
    })
}

/// `kubernetes: {state: {configMap, lease, leaseDuration}}`.
fn shared_state(node: &Node<'_>, has_folder: bool) -> Option<SharedState> {
    let mut map = node.map()?;
    let state = map.need("state", "a mapping with configMap");
    map.finish();
    let node = state?;
    let mut map = node.map()?;
    let config_map =
        map.need("configMap", "the name of a ConfigMap").and_then(|n| kubernetes::object_name(&n, "ConfigMap"));
    let lease = map.take("lease").map(|n| kubernetes::object_name(&n, "Lease"));
    let duration = map.take("leaseDuration").map(|n| n.duration(LEASE));
    map.finish();
    if has_folder {
        node.problem("is there beside stateDir; keep one, as there is one truth");
        return None;
    }
    let config_map = config_map?;
    Some(SharedState {
        lease: match lease {
            None => config_map.clone(),
            Some(name) => name?,
        },
        lease_duration: match duration {
            None => defaults::LEASE,
            Some(duration) => duration?,
        },
        config_map,
    })
}

/// An item of a list with a name, and what was made of it.
pub(super) struct Named<'a, T> {
    pub(super) node: Node<'a>,
    /// `None`: it has none that could be read, so nothing refers to it.
    pub(super) name: Option<String>,
    pub(super) value: Option<T>,
}

/// Names of one list, and the line of each.
pub(super) type Names = HashMap<String, usize>;

/// Takes `name`, which no earlier item may have.
pub(super) fn unique_name(map: &mut Map<'_>, earlier: &mut Names) -> Option<String> {
    let node = map.need("name", "a name")?;
    let name = node.name()?;
    claim(&node, &name, earlier);
    Some(name)
}

pub(super) fn claim(node: &Node<'_>, name: &str, earlier: &mut Names) {
    match earlier.get(name) {
        Some(line) => node.problem(format!("{name} is taken, in line {line}; write another name")),
        None => drop(earlier.insert(name.to_owned(), node.line())),
    }
}

fn admin(node: &Node<'_>) -> Admin {
    let mut admin = Admin::default();
    let Some(mut map) = node.map() else { return admin };
    let address = map.take("address");
    if let Some(address) =
        address.as_ref().and_then(|n| n.read("an address with a port, such as 127.0.0.1:9900", scalar::listen_address))
    {
        admin.address = address;
    }
    let (token, file) = (map.take("token"), map.take("tokenFile"));
    if let (Some(_), Some(file)) = (&token, &file) {
        file.problem("there is a token too; write one of the two");
    }
    let has_token = token.is_some() || file.is_some();
    admin.token = match (token, file) {
        (Some(token), _) => token.text("a token").and_then(|text| bearer(&token, &text)),
        (None, Some(file)) => token_from(&file),
        (None, None) => None,
    };
    map.finish();
    if !admin.address.ip().is_loopback() && !has_token {
        let warning = "is not on loopback and there is no token: all writes are refused; write token or tokenFile";
        address.as_ref().unwrap_or(node).warn(warning);
    }
    admin
}

fn bearer(node: &Node<'_>, text: &str) -> Option<Secret> {
    // What a header field can carry; the value itself is never shown.
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some(Secret(text.to_owned()));
    }
    node.problem("the token has a space or another character that no header can carry; write visible ASCII");
    None
}

fn token_from(node: &Node<'_>) -> Option<Secret> {
    use std::io::Read;

    let path = node.file()?;
    let mut text = String::new();
    let read = std::fs::metadata(&path).and_then(|meta| {
        if !meta.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        std::fs::File::open(&path)?.take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    });
    if let Err(error) = read {
        node.problem(format!("{} can't be read: {error}; write a readable file's path", path.display()));
        return None;
    }
    if text.trim().is_empty() {
        node.problem(format!("{} is empty; put a token in it", path.display()));
        return None;
    }
    bearer(node, text.trim())
}

fn access_log(node: &Node<'_>) -> AccessLog {
    let mut log = AccessLog::default();
    let Some(mut map) = node.map() else { return log };
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json), ("off", LogFormat::Off)];
    if let Some(format) = map.take("format").and_then(|n| n.word(&formats)) {
        log.format = format;
    }
    let sample = map.take("sample").and_then(|n| {
        n.number("a number from 0 to 1", |sample, text| {
            if (0.0..=1.0).contains(&sample) { Ok(sample) } else { Err(format!("{text} is out of range")) }
        })
    });
    if let Some(sample) = sample {
        log.sample = sample;
    }
    map.finish();
    log
}

fn drain(node: &Node<'_>) -> Drain {
    let mut drain = Drain::default();
    let Some(mut map) = node.map() else { return drain };
    drain.delay = map.duration("delay", drain.delay, WAIT);
    drain.spread = map.duration("spread", drain.spread, WAIT);
    drain.deadline = map.duration("deadline", drain.deadline, TIMEOUT);
    map.finish();
    let least = drain.delay + drain.spread;
    if least > drain.deadline {
        let [deadline, least] = [drain.deadline, least].map(scalar::duration_text);
        node.problem(format!(
            "a deadline of {deadline} ends before delay and spread, {least} together; write a deadline of {least} or more"
        ));
    }
    drain
}

fn limits(node: &Node<'_>) -> (Option<usize>, Option<MemoryLimit>) {
    let Some(mut map) = node.map() else { return (None, None) };
    let max = map.take("maxConnections").and_then(|n| n.integer(1..=10_000_000));
    let memory = map.take("memory").and_then(|n| n.read("a size from 16MiB on, cgroup or none", memory));
    map.finish();
    (max, memory)
}

fn memory(text: &str) -> Result<MemoryLimit, String> {
    match text {
        "cgroup" => Ok(MemoryLimit::Cgroup),
        "none" => Ok(MemoryLimit::Off),
        _ => match scalar::size(text)? {
            ..LEAST_MEMORY => Err(format!("{text} is too small")),
            bytes => Ok(MemoryLimit::Bytes(bytes)),
        },
    }
}

fn pins(node: &Node<'_>) -> Option<Pins> {
    let mut map = node.map()?;
    let max_entries = map.take("maxPins").and_then(|n| n.integer(1..=100_000_000));
    map.finish();
    max_entries.map(|max_entries| Pins { max_entries })
}

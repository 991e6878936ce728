//! The `routes` of a file, and what their listeners and services must be for them to hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::decode::Node;
use super::file::{Named, Names, claim};
use super::model::{Hostname, Listener, PathMatch, Route, Service};
use super::scalar::{self, shown};
use crate::decide::target;

/// Gateway API's `maxLength` of a path match.
const MAX_PATH: usize = 1_024;
/// Hosts times paths times listeners, of all routes: what the tables hold.
const MAX_PLACES: usize = 1_000_000;

/// Decodes the routes; `None` when one could not be. Without a readable list of listeners or services, no name is
/// called unknown: one mistake should not make a hundred problems.
pub(super) fn decode(
    nodes: &[Node<'_>],
    listeners: Option<&[Named<'_, Arc<Listener>>]>,
    services: Option<&[Named<'_, Service>]>,
) -> Option<Vec<Route>> {
    let mut names = Names::new();
    let mut taken = Taken::default();
    let known = Known {
        services: index(services.map(|all| all.iter().map(|s| s.name.as_deref()))),
        listeners: index(listeners.map(|all| all.iter().map(|l| l.name.as_deref()))),
        all_listeners: listeners.map_or(0, <[_]>::len),
    };
    let routes: Vec<Option<Route>> =
        nodes.iter().enumerate().map(|(number, node)| route(node, number, &known, &mut names, &mut taken)).collect();
    let routes = routes.into_iter().collect::<Option<Vec<Route>>>()?;
    if let (Some(listeners), Some(services)) = (listeners, services) {
        unused(&routes, listeners, services);
    }
    Some(routes)
}

/// What a route may refer to.
struct Known<'a> {
    services: Index<'a>,
    listeners: Index<'a>,
    all_listeners: usize,
}

/// Where each name is.
struct Index<'a> {
    positions: HashMap<&'a str, usize>,
    /// False when an item has no name that can be read: a name that is not here may be its.
    complete: bool,
}

fn index<'a>(names: Option<impl Iterator<Item = Option<&'a str>>>) -> Index<'a> {
    let mut index = Index { positions: HashMap::new(), complete: names.is_some() };
    for (position, name) in names.into_iter().flatten().enumerate() {
        match name {
            Some(name) => drop(index.positions.entry(name).or_insert(position)),
            None => index.complete = false,
        }
    }
    index
}

/// A reference to an item by its name.
fn refer(node: &Node<'_>, what: &str, index: &Index<'_>) -> Option<(String, usize)> {
    let name = node.name()?;
    let position = index.positions.get(&*name).copied();
    if position.is_none() && index.complete {
        let mut all: Vec<&str> = index.positions.keys().copied().collect();
        all.sort_unstable();
        let advice = match all.get(..5) {
            _ if all.is_empty() => format!("write one under {what}s first"),
            Some(some) if all.len() > 5 => format!("write one of {}, ...", some.join(", ")),
            _ => format!("write {}", all.join(" or ")),
        };
        node.problem(format!("there is no {what} {name}; {advice}"));
    }
    Some((name, position?))
}

fn route(node: &Node<'_>, number: usize, known: &Known<'_>, names: &mut Names, taken: &mut Taken) -> Option<Route> {
    let mut map = node.map()?;
    let name = match map.take("name") {
        Some(node) => node.name().inspect(|name| claim(&node, name, names)),
        None => {
            let name = format!("route-{}", number + 1);
            claim(node, &name, names);
            Some(name)
        }
    };
    let hostnames: Option<Vec<(Hostname, Node<'_>)>> = map.take("hostnames").map_or(Some(Vec::new()), |n| {
        let nodes = n.list("host names")?;
        let hosts = nodes.into_iter().map(|n| {
            Some((n.read("a host name, such as shop.example.com or \"*.example.com\"", scalar::hostname)?, n))
        });
        // All of them, before the first that failed ends the collecting.
        hosts.collect::<Vec<_>>().into_iter().collect()
    });
    let matches: Option<Vec<(PathMatch, Node<'_>)>> = match map.take("matches") {
        None => Some(Vec::new()),
        Some(n) => n.list("matches, such as path: {value: /login}").and_then(|nodes| {
            nodes.into_iter().map(|n| Some((path_match(&n)?, n))).collect::<Vec<_>>().into_iter().collect()
        }),
    };
    let service = map.need("service", "the name of a service").and_then(|n| refer(&n, "service", &known.services));
    let listeners: Option<Vec<(String, usize)>> = map.take("listeners").map_or(Some(Vec::new()), |n| {
        let nodes = n.filled_list("the listeners' names")?;
        nodes.iter().map(|n| refer(n, "listener", &known.listeners)).collect::<Vec<_>>().into_iter().collect()
    });
    map.finish();
    let (hostnames, mut matches) = (hostnames?, matches?);
    if matches.is_empty() {
        matches.push((PathMatch::Prefix(String::new()), node.clone()));
    }
    if let Some(listeners) = &listeners {
        let positions = if listeners.is_empty() {
            (0..known.all_listeners).collect()
        } else {
            listeners.iter().map(|(_, position)| *position).collect::<HashSet<_>>()
        };
        taken.claim(node, &hostnames, &matches, &positions);
    }
    Some(Route {
        name: Arc::from(name?),
        hostnames: hostnames.into_iter().map(|(h, _)| h).collect(),
        matches: matches.into_iter().map(|(m, _)| m).collect(),
        service: service?.1,
        listeners: listeners?.into_iter().map(|(name, _)| Arc::from(name)).collect(),
    })
}

fn path_match(node: &Node<'_>) -> Option<PathMatch> {
    let mut map = node.map()?;
    let path = map.take("path");
    map.finish();
    let Some(path) = path else { return Some(PathMatch::Prefix(String::new())) };
    let mut map = path.map()?;
    let exact = map.take("type").map_or(Some(false), |n| n.word(&[("Exact", true), ("PathPrefix", false)]));
    let value = map.need("value", "a path, such as /login").and_then(|n| n.read("a path, such as /login", path_value));
    map.finish();
    let (exact, value) = (exact?, value?);
    Some(if exact {
        PathMatch::Exact(value)
    } else {
        PathMatch::Prefix(value.strip_suffix('/').unwrap_or(&value).to_owned())
    })
}

/// A path that a request can have: what requests are normalised to.
fn path_value(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("{} does not start with /", shown(text)));
    }
    if text.len() > MAX_PATH {
        return Err(format!("{} is longer than {MAX_PATH} bytes", shown(text)));
    }
    if text.contains(['?', '#']) {
        return Err(format!("{} has a query or fragment, which paths are matched without", shown(text)));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{} has a space or another character that stands as %xx in a path", shown(text)));
    }
    match target::normalise(text) {
        Ok(normal) if normal == text => Ok(text.to_owned()),
        Ok(normal) => Err(format!("{} never arrives, requests are normalised to {}", shown(text), shown(&normal))),
        Err(_) => Err(format!("{} never arrives, such requests are refused", shown(text))),
    }
}

/// Who has which host and path on which listener.
#[derive(Default)]
struct Taken {
    places: HashMap<(Option<Hostname>, PathMatch), Vec<Owner>>,
    count: usize,
}

struct Owner {
    listener: usize,
    path: String,
    line: usize,
}

impl Taken {
    fn claim(
        &mut self,
        route: &Node<'_>,
        hostnames: &[(Hostname, Node<'_>)],
        matches: &[(PathMatch, Node<'_>)],
        listeners: &HashSet<usize>,
    ) {
        let before = self.count;
        let more = hostnames.len().max(1).saturating_mul(matches.len()).saturating_mul(listeners.len());
        self.count = self.count.saturating_add(more);
        if self.count > MAX_PLACES {
            // Once, at the route that goes over.
            if before <= MAX_PLACES {
                route.problem(format!("more than {MAX_PLACES} pairs of host and path up to here; write fewer"));
            }
            return;
        }
        let any = [None];
        let hosts: Vec<Option<&Hostname>> =
            if hostnames.is_empty() { any.to_vec() } else { hostnames.iter().map(|(h, _)| Some(h)).collect() };
        for host in hosts {
            for (path, node) in matches {
                let owners = self.places.entry((host.cloned(), path.clone())).or_default();
                match owners.iter().find(|o| listeners.contains(&o.listener)) {
                    Some(owner) => node.problem(format!(
                        "{} on {} is taken by {} in line {}; write another path or host, or remove one",
                        path,
                        host.map_or_else(|| "any host".into(), ToString::to_string),
                        owner.path,
                        owner.line
                    )),
                    None => owners.extend(listeners.iter().map(|listener| Owner {
                        listener: *listener,
                        path: node.path().to_owned(),
                        line: node.line(),
                    })),
                }
            }
        }
    }
}

/// Warns of what can't be reached.
fn unused(routes: &[Route], listeners: &[Named<'_, Arc<Listener>>], services: &[Named<'_, Service>]) {
    let used: HashSet<usize> = routes.iter().map(|r| r.service).collect();
    for (position, service) in services.iter().enumerate() {
        if !used.contains(&position) {
            service.node.warn("no route leads to this service; write one, or remove the service");
        }
    }
    let everywhere = routes.iter().any(|r| r.listeners.is_empty());
    let named: HashSet<&str> = routes.iter().flat_map(|r| &r.listeners).map(|l| &**l).collect();
    for listener in listeners {
        let Some(value) = &listener.value else { continue };
        if value.redirect_to_https.is_none() && !everywhere && !named.contains(&*value.name) {
            listener.node.warn("no route holds on this listener, so it answers 404 to all; write one");
        }
        if value.redirect_to_https.is_some() && named.contains(&*value.name) {
            listener.node.warn("redirects everything, yet a route names it; remove the name from the route");
        }
    }
}

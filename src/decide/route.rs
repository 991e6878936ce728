//! The route table of one listener: host and path to a route, with Gateway API's precedence.
//!
//! The most specific hostname wins (exact, then the longest wildcard, then none), and within it the most specific path
//! (Exact, then the longest PathPrefix); of equals the first in the file. A hostname without a matching path leaves the
//! request to the less specific ones. A look-up allocates nothing and costs a logarithm of the number of routes,
//! whatever the request looks like: no hash over attacker-made suffixes. It does not know what a route leads to.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// Lower case, without port and trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hostname {
    Exact(String),
    /// `*.example.com` is `example.com` here; matches one or more labels in front (Gateway API).
    Wildcard(String),
}

/// Gateway API's `HTTPPathMatch`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathMatch {
    Exact(String),
    /// Whole path elements: `/a` matches `/a` and `/a/b`, not `/ab`. Kept without a trailing slash: `/` is "".
    Prefix(String),
}

impl fmt::Display for Hostname {
    /// As in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl PathMatch {
    /// Gateway API's name of the type.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Exact(_) => "Exact",
            Self::Prefix(_) => "PathPrefix",
        }
    }

    /// The path as in a configuration: `/` and not "".
    #[must_use]
    pub fn value(&self) -> &str {
        match self {
            Self::Exact(path) => path,
            Self::Prefix(path) if path.is_empty() => "/",
            Self::Prefix(path) => path,
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.value())
    }
}

/// Built once per snapshot and listener.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: Sorted<Paths>,
    wildcard: Nested<Paths>,
    any: Option<Paths>,
    rules: Vec<Rule>,
}

/// One line of the table: what `perch check` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None`: any host.
    pub host: Option<Hostname>,
    pub path: PathMatch,
    /// The route's number.
    pub route: usize,
}

impl RouteTable {
    /// `routes` in the file's order: hostnames (empty: any), path matches (empty: every path), and the route's number.
    #[must_use]
    pub fn new<'a>(routes: impl IntoIterator<Item = (&'a [Hostname], &'a [PathMatch], usize)>) -> Self {
        let mut hosts: BTreeMap<Option<&Hostname>, BTreeMap<PathMatch, usize>> = BTreeMap::new();
        for (hostnames, matches, route) in routes {
            let every_path = [PathMatch::Prefix(String::new())];
            let matches = if matches.is_empty() { &every_path } else { matches };
            let names = hostnames.iter().map(Some).chain(hostnames.is_empty().then_some(None));
            for name in names {
                let paths = hosts.entry(name).or_default();
                for path in matches {
                    // Of equals the first in the file wins.
                    paths.entry(path.clone()).or_insert(route);
                }
            }
        }

        let rules = rules(&hosts);
        let mut table = Self { rules, ..Self::default() };
        let mut exact = Vec::new();
        let mut wildcard = Vec::new();
        for (host, paths) in hosts {
            let paths = Paths::new(paths);
            match host {
                Some(Hostname::Exact(name)) => exact.push((name.as_bytes().into(), paths)),
                Some(Hostname::Wildcard(suffix)) => wildcard.push((ranked(host_elements(suffix)), paths)),
                None => table.any = Some(paths),
            }
        }
        table.exact = Sorted::new(exact);
        table.wildcard = Nested::new(wildcard);
        table
    }

    /// The number of the route for a host (any case, no port) and a normalised path without its query.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<usize> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let exact =
            self.exact.find(host.bytes().map(|byte| byte.to_ascii_lowercase())).and_then(|paths| paths.find(path));
        if exact.is_some() {
            return exact;
        }

        self.wildcard
            .longest_first(host_elements(host))
            // The suffix alone is not matched by `*.suffix`.
            .filter(|(length, _)| *length < host.len())
            .find_map(|(_, paths)| paths.find(path))
            .or_else(|| self.any.as_ref()?.find(path))
    }

    /// Every rule, in order of precedence. Rules that an equal one earlier in the file hides are left out.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

fn rules(hosts: &BTreeMap<Option<&Hostname>, BTreeMap<PathMatch, usize>>) -> Vec<Rule> {
    let mut rules: Vec<_> = hosts
        .iter()
        .flat_map(|(host, paths)| {
            paths.iter().map(|(path, route)| Rule { host: host.cloned(), path: path.clone(), route: *route })
        })
        .collect();
    // Stable: equal ones stay in alphabetical order.
    rules.sort_by_key(|rule| {
        let host = match &rule.host {
            Some(Hostname::Exact(_)) => (0, 0),
            Some(Hostname::Wildcard(suffix)) => (1, usize::MAX - suffix.len()),
            None => (2, 0),
        };
        let path = match &rule.path {
            PathMatch::Exact(_) => (0, 0),
            PathMatch::Prefix(prefix) => (1, usize::MAX - prefix.len()),
        };
        (host.0, host.1, rule.host.clone(), path)
    });
    rules
}

/// The paths of one hostname.
#[derive(Debug, Default)]
struct Paths {
    exact: Sorted<usize>,
    prefix: Nested<usize>,
}

impl Paths {
    fn new(paths: BTreeMap<PathMatch, usize>) -> Self {
        let mut exact = Vec::new();
        let mut prefix = Vec::new();
        for (path, route) in paths {
            match path {
                PathMatch::Exact(value) => exact.push((value.into_bytes().into(), route)),
                PathMatch::Prefix(value) => prefix.push((ranked(path_elements(&value)), route)),
            }
        }
        Self { exact: Sorted::new(exact), prefix: Nested::new(prefix) }
    }

    fn find(&self, path: &str) -> Option<usize> {
        let exact = self.exact.find(path.bytes()).copied();
        exact.or_else(|| self.prefix.longest_first(path_elements(path)).next().map(|(_, route)| *route))
    }
}

/// A map by binary search, compared with bytes that are lower-cased on the way.
#[derive(Debug)]
struct Sorted<T>(Box<[(Box<[u8]>, T)]>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> Sorted<T> {
    fn new(mut entries: Vec<(Box<[u8]>, T)>) -> Self {
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Self(entries.into())
    }

    fn find(&self, key: impl Iterator<Item = u8> + Clone) -> Option<&T> {
        let at = self.0.binary_search_by(|(own, _)| own.iter().copied().cmp(key.clone())).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }
}

/// The rank of the byte that separates elements. It is the lowest, so that the sorted order is the preorder of the
/// tree of elements: everything inside `/a` stands right behind `/a`, before `/a-b`.
const SEPARATOR: u8 = 0;

/// A path's bytes from the left, in the order of [`Nested`].
fn path_elements(path: &str) -> impl Iterator<Item = u8> + Clone {
    // Bytes of a str are at most 0xf4: adding one never wraps.
    path.bytes().map(|byte| if byte == b'/' { SEPARATOR } else { byte.wrapping_add(1) })
}

/// A host's bytes from the right, lower-cased, in the order of [`Nested`].
fn host_elements(host: &str) -> impl Iterator<Item = u8> + Clone {
    host.bytes().rev().map(|byte| if byte == b'.' { SEPARATOR } else { byte.to_ascii_lowercase().wrapping_add(1) })
}

fn ranked(elements: impl Iterator<Item = u8>) -> Box<[u8]> {
    elements.collect()
}

/// Finds all keys that are the front of another one, cut at an element's end: one binary search for the last key that
/// is not greater, then up its ancestors. That key is inside the longest match, or is it.
#[derive(Debug)]
struct Nested<T>(Box<[Node<T>]>);

#[derive(Debug)]
struct Node<T> {
    key: Box<[u8]>,
    /// The longest other key that is this one's front.
    parent: Option<usize>,
    value: T,
}

impl<T> Default for Nested<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> Nested<T> {
    fn new(mut entries: Vec<(Box<[u8]>, T)>) -> Self {
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let mut nodes: Vec<Node<T>> = Vec::with_capacity(entries.len());
        let mut ancestors: Vec<usize> = Vec::new();
        for (key, value) in entries {
            while let Some(last) = ancestors.last().and_then(|at| nodes.get(*at)) {
                let below = key.strip_prefix(&*last.key);
                if below.is_some_and(|rest| rest.first() == Some(&SEPARATOR)) {
                    break;
                }
                ancestors.pop();
            }
            nodes.push(Node { key, parent: ancestors.last().copied(), value });
            ancestors.push(nodes.len() - 1);
        }
        Self(nodes.into())
    }

    /// The values of all keys that are the front of `key`, longest first, each with its key's length.
    fn longest_first(&self, key: impl Iterator<Item = u8> + Clone) -> impl Iterator<Item = (usize, &T)> {
        let after = self.0.partition_point(|node| node.key.iter().copied().cmp(key.clone()) != Ordering::Greater);
        let mut next = after.checked_sub(1);
        let common = next
            .and_then(|at| self.0.get(at))
            .map_or(0, |node| node.key.iter().copied().zip(key.clone()).take_while(|(a, b)| a == b).count());
        std::iter::from_fn(move || {
            let node = self.0.get(next?)?;
            next = node.parent;
            Some(node)
        })
        .filter(move |node| {
            let length = node.key.len();
            length <= common && matches!(key.clone().nth(length), None | Some(SEPARATOR))
        })
        .map(|node| (node.key.len(), &node.value))
    }
}

#[cfg(test)]
mod tests;

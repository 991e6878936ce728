//! The route table of one listener: host and path to a route, with Gateway API's precedence.

use std::collections::HashMap;

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

/// Built once per snapshot and listener.
#[derive(Debug, Default)]
pub struct RouteTable {
    _hosts: HashMap<String, ()>,
}

impl RouteTable {
    /// `routes` in the file's order: hostnames (empty: any), path matches, and the route's number.
    #[must_use]
    pub fn new<'a>(_routes: impl IntoIterator<Item = (&'a [Hostname], &'a [PathMatch], usize)>) -> Self {
        Self::default()
    }

    /// The number of the route for a host (any case, no port) and a normalised path without its query.
    #[must_use]
    pub fn find(&self, _host: &str, _path: &str) -> Option<usize> {
        None
    }
}

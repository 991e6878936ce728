//! What routing will do, for people: every host and path in the order in which requests are matched.
//!
//! The order is Gateway API's: an exact host before a wildcard, a longer wildcard before a shorter one, any host last;
//! then an exact path before a prefix, and a longer prefix before a shorter one. The data path's own table is
//! [`super::route::RouteTable`]; a test holds the two together.

use std::cmp::Reverse;

use super::route::{Hostname, PathMatch};

/// One line of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// `None`: any.
    pub host: Option<&'a Hostname>,
    pub path: &'a PathMatch,
    /// The route's number.
    pub route: usize,
}

/// The lines of some routes, the first to match first: hostnames (empty: any), path matches, and the route's number.
#[must_use]
pub fn lines<'a>(routes: impl IntoIterator<Item = (&'a [Hostname], &'a [PathMatch], usize)>) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    for (hostnames, paths, route) in routes {
        for path in paths {
            lines.extend(hostnames.iter().map(|h| Line { host: Some(h), path, route }));
            if hostnames.is_empty() {
                lines.push(Line { host: None, path, route });
            }
        }
    }
    lines.sort_by_key(|line| {
        let host = match line.host {
            Some(Hostname::Exact(name)) => (0, Reverse(0), &**name),
            Some(Hostname::Wildcard(parent)) => (1, Reverse(parent.len()), &**parent),
            None => (2, Reverse(0), ""),
        };
        let path = match line.path {
            PathMatch::Exact(path) => (0, Reverse(0), &**path),
            PathMatch::Prefix(path) => (1, Reverse(path.len()), &**path),
        };
        (host, path)
    });
    lines
}

/// A host as it is written in a configuration; `*` for any.
#[must_use]
pub fn host_text(host: Option<&Hostname>) -> String {
    match host {
        None => "*".into(),
        Some(Hostname::Exact(name)) => name.clone(),
        Some(Hostname::Wildcard(parent)) => format!("*.{parent}"),
    }
}

/// A path match in words: `/login` exactly, or `/api` and all below it.
#[must_use]
pub fn path_text(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(path) => format!("{path} (exact)"),
        PathMatch::Prefix(path) => format!("{path}/*"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_host_and_path_come_first() {
        let exact = [Hostname::Exact("a.example.com".into())];
        let wide = [Hostname::Wildcard("com".into())];
        let narrow = [Hostname::Wildcard("example.com".into())];
        let paths = [PathMatch::Prefix(String::new()), PathMatch::Prefix("/a".into()), PathMatch::Exact("/".into())];
        let all: Vec<(&[Hostname], &[PathMatch], usize)> =
            vec![(&[], &paths, 0), (&wide, &paths, 1), (&narrow, &paths, 2), (&exact, &paths, 3)];

        let lines: Vec<String> =
            lines(all).iter().map(|l| format!("{} {}", host_text(l.host), path_text(l.path))).collect();

        assert_eq!(
            lines[..4],
            ["a.example.com / (exact)", "a.example.com /a/*", "a.example.com /*", "*.example.com / (exact)"]
        );
        assert_eq!(lines[6..], ["*.com / (exact)", "*.com /a/*", "*.com /*", "* / (exact)", "* /a/*", "* /*"]);
    }
}

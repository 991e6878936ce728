//! One decision with its reasoning: what `perch explain` prints and the admin API answers.
//!
//! The answer comes from the very functions of the data path ([`Policy::choose`], [`Places::choose`]); only the words
//! around it are made here. It does not know where the picture came from: a file, or the live snapshot.

use serde::{Deserialize, Serialize};

use super::choose::{Asker, Forced, Hold, NoVersion, Policy, WhenEmpty, Why};
use super::client_key::ClientKey;
use super::places::Places;
use super::route::{Hostname, PathMatch};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub policy: &'a Policy,
    /// `None` when nobody is remembered (`affinity: None`).
    pub client: Option<ClientKey>,
    /// What gave the last answer: index of the version, name of the endpoint.
    pub pin: Option<(usize, &'a str)>,
    /// The version that the client is known to belong to.
    pub home: Option<usize>,
    pub forced: Option<Forced>,
    /// In the unit of [`Hold::Until`].
    pub now: u64,
    /// By version, in the split's order.
    pub endpoints: &'a [Vec<Candidate<'a>>],
}

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub name: &'a str,
    pub seed: u64,
    pub is_usable: bool,
    /// It is warm enough for this client, as a newcomer.
    pub lets_in: bool,
}

/// The decision and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub versions: Vec<VersionNote>,
    /// What the split alone says, before pins, overrides and empty versions.
    pub split: Option<String>,
    /// `None`: nobody serves this client, see `reason`; or each request is decided for itself.
    pub version: Option<String>,
    pub why: Option<Why>,
    pub endpoint: Option<String>,
    /// `closed` or `no-ready-endpoint`, as in the `perch-reason` header.
    pub reason: Option<String>,
    /// Sentences, in the order of the decision.
    pub reasoning: Vec<String>,
}

/// A version as this client sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionNote {
    pub name: String,
    pub weight: f64,
    /// Of the clients, 0 to 1.
    pub share: f64,
    /// The smallest share at which this client joins, the other versions keeping their ratios. `None`: at any share
    /// above 0, or nobody is remembered.
    pub join_point: Option<f64>,
    /// `none`, `drain` or `freeze`: whether clients that were on it stay.
    pub hold: String,
    pub endpoints: usize,
    pub usable_endpoints: usize,
}

/// Decides and explains.
#[must_use]
pub fn explain(question: &Question<'_>) -> Verdict {
    let policy = question.policy;
    let name = |version: usize| policy.split.name(version).map_or_else(String::new, ToString::to_string);
    let versions: Vec<_> = (0..policy.split.len()).map(|v| note(question, v)).collect();
    let usable = |v: usize| question.endpoints.get(v).is_some_and(|e| e.iter().any(|e| e.is_usable));

    let Some(client) = question.client else {
        let reasoning = vec![
            "affinity is None: each request is decided for itself, in the proportion of the weights".to_owned(),
            "the endpoint is the less busy of two picked at random".to_owned(),
        ];
        let reason = match policy.choose(Asker::Request(0), question.forced, question.now, usable) {
            Ok(_) => None,
            Err(none) => Some(reason_of(none)),
        };
        return Verdict { versions, split: None, version: None, why: None, endpoint: None, reason, reasoning };
    };

    let own = policy.split.version_of(client);
    let asker = Asker::Client(client, question.home);
    let chosen = policy.choose(asker, question.forced, question.now, usable);
    let mut reasoning = Vec::new();
    match own {
        Some(own) => reasoning.push(split_sentence(&versions, own)),
        None => reasoning.push("all weights are 0: the service is closed".to_owned()),
    }
    if let Some((pinned, _)) = question.pin {
        reasoning.push(pin_sentence(question, pinned, own));
    }
    if let Some(version) = policy.recalled(client, question.now).filter(|_| question.home.is_none()) {
        reasoning.push(recall_sentence(question, version));
    }
    match question.forced {
        Some(Forced::To(version)) => reasoning.push(format!("an override asks for {}", name(version))),
        Some(Forced::Except(version)) => {
            reasoning.push(format!("an override asks for any version but {}", name(version)))
        }
        None => {}
    }
    match chosen {
        Ok(choice) => {
            if choice.why == Why::WhenEmpty {
                reasoning.push(format!(
                    "its own version has no usable endpoint: whenEmpty is fallback, so {} serves it until that is back",
                    name(choice.version)
                ));
            }
            let endpoint = endpoint(question, client, choice.version, &mut reasoning);
            Verdict {
                versions,
                split: own.map(name),
                version: Some(name(choice.version)),
                why: Some(choice.why),
                endpoint,
                reason: None,
                reasoning,
            }
        }
        Err(none) => {
            if let NoVersion::NoEndpoint(version) = none {
                let rest = match policy.when_empty {
                    WhenEmpty::Fail => "whenEmpty is fail, so it gets 503",
                    WhenEmpty::Fallback => "no other version can stand in, so it gets 503",
                };
                reasoning.push(format!("{} has no usable endpoint: {rest}", name(version)));
            }
            let reason = Some(reason_of(none));
            Verdict { versions, split: own.map(name), version: None, why: None, endpoint: None, reason, reasoning }
        }
    }
}

fn note(question: &Question<'_>, version: usize) -> VersionNote {
    let split = &question.policy.split;
    let endpoints = question.endpoints.get(version).map(Vec::as_slice).unwrap_or_default();
    VersionNote {
        name: split.name(version).map_or_else(String::new, ToString::to_string),
        weight: split.weight(version).unwrap_or_default().value(),
        share: split.share(version),
        join_point: question.client.and_then(|client| split.join_point(version, client)),
        hold: match question.policy.holds.get(version) {
            Some(Hold::Until(end)) if question.now < *end => "drain".to_owned(),
            Some(Hold::Frozen) => "freeze".to_owned(),
            Some(Hold::None | Hold::Until(_)) | None => "none".to_owned(),
        },
        endpoints: endpoints.len(),
        usable_endpoints: endpoints.iter().filter(|e| e.is_usable).count(),
    }
}

fn split_sentence(versions: &[VersionNote], own: usize) -> String {
    let Some(version) = versions.get(own) else { return String::new() };
    let share = Percent(version.share);
    match version.join_point {
        Some(point) => format!(
            "the split gives it to {}: it joins {} at {} or more, and the share is {share}",
            version.name,
            version.name,
            Percent(point)
        ),
        None => format!("the split gives everyone to {}: no other version has weight", version.name),
    }
}

fn pin_sentence(question: &Question<'_>, pinned: usize, own: Option<usize>) -> String {
    let name = |v: usize| question.policy.split.name(v).map_or("", |n| n);
    let belongs = question.home.unwrap_or(pinned);
    let hold = match question.policy.holds.get(belongs) {
        Some(Hold::Frozen) => "the split is paused, so it stays there",
        Some(Hold::Until(end)) if question.now < *end => {
            "that version is draining, so it stays there while it is active"
        }
        Some(Hold::None | Hold::Until(_)) | None if own == Some(belongs) => "the split agrees",
        Some(Hold::None | Hold::Until(_)) | None => "nothing holds it there",
    };
    if belongs == pinned {
        return format!("it was last served by {}: {hold}", name(pinned));
    }
    format!("it was last served by {} and belongs to {}: {hold}", name(pinned), name(belongs))
}

fn recall_sentence(question: &Question<'_>, version: usize) -> String {
    let name = question.policy.split.name(version).map_or("", |n| n);
    let (what, while_so) = match question.policy.holds.get(version) {
        Some(Hold::Frozen) => ("the weights changed", "that version is frozen, so it stays there"),
        Some(Hold::None | Hold::Until(_)) | None => {
            ("the drain began", "that version is draining, so it stays there while it is active")
        }
    };
    format!(
        "nothing is remembered of it, as this perch started after {what}: before, the split gave it to {name}; {while_so}"
    )
}

/// As the data path does: the pinned endpoint while it is usable, else the client's own choice among the usable ones.
fn endpoint(question: &Question<'_>, client: ClientKey, version: usize, reasoning: &mut Vec<String>) -> Option<String> {
    let candidates = question.endpoints.get(version)?;
    if let Some((pinned, name)) = question.pin
        && pinned == version
        && candidates.iter().any(|e| e.name == name && e.is_usable)
    {
        reasoning.push(format!("it keeps its endpoint {name}"));
        return Some(name.to_owned());
    }
    let usable = |i: usize| candidates.get(i).is_some_and(|e| e.is_usable);
    let lets_in = |i: usize| candidates.get(i).is_some_and(|e| e.is_usable && e.lets_in);
    let places = Places::new(candidates.iter().map(|e| e.seed));
    let first = places.choose(client, usable)?;
    let chosen = candidates.get(places.choose(client, lets_in).unwrap_or(first))?;
    if let Some(cold) = candidates.get(first).filter(|e| e.name != chosen.name) {
        reasoning.push(format!("{} has just come (back) and lets only some in yet (slowStart)", cold.name));
    }
    reasoning.push(format!(
        "of {}'s usable endpoints its first choice is {}",
        question.policy.split.name(version)?,
        chosen.name
    ));
    Some(chosen.name.to_owned())
}

fn reason_of(none: NoVersion) -> String {
    let reason = match none {
        NoVersion::Closed => "closed",
        NoVersion::NoEndpoint(_) => "no-ready-endpoint",
    };
    reason.to_owned()
}

/// A share as people read it, with three significant digits below 10 %: `0.0234 %`, `12.3 %`.
#[derive(Clone, Copy, Debug)]
pub struct Percent(pub f64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = self.0 * 100.0;
        let decimals = match percent {
            p if p >= 10.0 || p <= 0.0 => 1,
            p if p >= 1.0 => 2,
            p if p >= 0.1 => 3,
            _ => 4,
        };
        let text = format!("{percent:.decimals$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        write!(f, "{text} %")
    }
}

/// A route and why it does or does not serve a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteNote {
    pub route: String,
    pub chosen: bool,
    pub note: String,
}

/// A route as it stands in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct RouteShape<'a> {
    pub name: &'a str,
    pub hostnames: &'a [Hostname],
    /// Empty: every path.
    pub matches: &'a [PathMatch],
    /// It holds on the listener that is asked about.
    pub is_on_listener: bool,
}

/// Why each route was chosen or not. `found` is the answer of [`super::route::RouteTable::find`] as a position in
/// `routes`; `host` is in lower case and without a port, `path` normalised.
#[must_use]
pub fn explain_routes(routes: &[RouteShape<'_>], host: &str, path: &str, found: Option<usize>) -> Vec<RouteNote> {
    let winner = found.and_then(|i| routes.get(i)).map_or("", |r| r.name);
    let every_path = PathMatch::Prefix(String::new());
    let mut notes = Vec::with_capacity(routes.len());
    for (i, route) in routes.iter().enumerate() {
        let chosen = found == Some(i);
        let hostname = route.hostnames.iter().find(|h| host_matches(h, host));
        let path_match = if route.matches.is_empty() {
            Some(&every_path)
        } else {
            route.matches.iter().find(|m| path_matches(m, path))
        };
        let note = if !route.is_on_listener {
            "does not hold on this listener".to_owned()
        } else if !route.hostnames.is_empty() && hostname.is_none() {
            format!("no hostname matches {host:?}")
        } else {
            match path_match {
                None => format!("no path matches {path:?}"),
                Some(by) if chosen => format!("matches by {}{}", host_words(hostname), path_words(by)),
                Some(by) => {
                    format!("would match by {}{}, but {winner} is more specific", host_words(hostname), path_words(by))
                }
            }
        };
        notes.push(RouteNote { route: route.name.to_owned(), chosen, note });
    }
    notes
}

fn host_matches(hostname: &Hostname, host: &str) -> bool {
    match hostname {
        Hostname::Exact(name) => name == host,
        Hostname::Wildcard(parent) => {
            host.strip_suffix(parent.as_str()).and_then(|front| front.strip_suffix('.')).is_some_and(|f| !f.is_empty())
        }
    }
}

fn path_matches(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => exact == path,
        PathMatch::Prefix(prefix) => {
            path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

fn host_words(hostname: Option<&Hostname>) -> String {
    match hostname {
        None => "any host and ".to_owned(),
        Some(Hostname::Exact(name)) => format!("host {name} and "),
        Some(Hostname::Wildcard(parent)) => format!("host *.{parent} and "),
    }
}

fn path_words(wanted: &PathMatch) -> String {
    match wanted {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(prefix) if prefix.is_empty() => "path prefix /".to_owned(),
        PathMatch::Prefix(prefix) => format!("path prefix {prefix}"),
    }
}

#[cfg(test)]
mod tests;

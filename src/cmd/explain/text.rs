//! An explanation for a person at a terminal.

use std::fmt::Write;

use crate::admin::explain::Answer;
use crate::decide::explain::{Percent, VersionNote};

/// Width of the names on the left.
const NAMES: usize = 12;

pub(super) fn render(answer: &Answer) -> String {
    let mut out = String::new();
    let mut fact = |name: &str, value: String| {
        writeln!(out, "{name:NAMES$}{value}").expect("a String takes everything");
    };

    let client = &answer.client;
    fact(
        "client",
        match (&client.key, client.prefix) {
            (Some(key), Some(prefix)) => format!("{}, known as {key}/{prefix}", client.address),
            _ => client.address.to_string(),
        },
    );
    if let (Some(host), Some(path)) = (&answer.host, &answer.path) {
        fact("request", format!("{}{path}", if host.is_empty() { "(any host) " } else { host }));
    }
    if let Some(route) = &answer.route {
        let listener = answer.listener.as_ref().map_or_else(String::new, |l| format!(" on listener {l}"));
        fact("route", format!("{route}{listener}"));
    }
    if let (Some(service), Some(cohort), Some(affinity)) = (&answer.service, &answer.cohort, &answer.affinity) {
        let salt = if cohort.salted { " with a secret salt" } else { "" };
        let timeout = affinity.timeout_seconds.map_or_else(String::new, |t| format!(" ({t} s)"));
        fact("service", format!("{service}, cohort {}{salt}, affinity {}{timeout}", cohort.name, affinity.kind));
    }
    if let Some(overrides) = &answer.overrides {
        let by = [
            overrides.header.as_ref().map(|h| format!("header {h}")),
            overrides.cookie.as_ref().map(|c| format!("cookie {c}")),
        ];
        let by: Vec<_> = by.into_iter().flatten().collect();
        let may = if overrides.is_trusted { "this client may" } else { "this client may not" };
        fact("overrides", format!("by {}; {may}", by.join(" or ")));
    }
    if let Some(pin) = &answer.pin {
        fact("pin", format!("{} at {}, {}", pin.version, pin.endpoint, pin.why.as_str()));
    }
    match (&answer.version, answer.why, &answer.reason) {
        (Some(version), Some(why), _) => fact("version", format!("{version} ({})", why.as_str())),
        (_, _, Some(reason)) => fact("version", format!("none: {reason}")),
        _ => fact("version", "of each request anew".to_owned()),
    }
    if let Some(endpoint) = &answer.endpoint {
        fact("endpoint", endpoint.clone());
    }
    if let Some(generation) = answer.generation {
        fact("generation", generation.to_string());
    }

    if !answer.versions.is_empty() {
        out.push('\n');
        out.push_str(&table(&answer.versions));
    }
    if !answer.reasoning.is_empty() {
        out.push_str("\nwhy\n");
        answer.reasoning.iter().for_each(|sentence| out.push_str(&format!("  {sentence}\n")));
    }
    if !answer.routes.is_empty() {
        out.push_str("\nroutes\n");
        let width = answer.routes.iter().map(|r| r.route.chars().count()).max().unwrap_or_default();
        for route in &answer.routes {
            let mark = if route.chosen { '>' } else { ' ' };
            out.push_str(&format!("{mark} {:width$}  {}\n", route.route, route.note));
        }
    }
    out
}

fn table(versions: &[VersionNote]) -> String {
    let heading = ["version", "weight", "share", "joins", "hold", "usable endpoints"].map(str::to_owned);
    let rows = versions.iter().map(|v| {
        let joins = v.join_point.map_or_else(|| "-".to_owned(), |point| format!("at {} or more", Percent(point)));
        let endpoints = format!("{} of {}", v.usable_endpoints, v.endpoints);
        [v.name.clone(), v.weight.to_string(), Percent(v.share).to_string(), joins, v.hold.clone(), endpoints]
    });
    let rows: Vec<[String; 6]> = std::iter::once(heading).chain(rows).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter()
        .map(|row| {
            let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("{}\n", cells.join("  ").trim_end())
        })
        .collect()
}

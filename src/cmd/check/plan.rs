//! The plan that a configuration makes, for people and as JSON.
//!
//! Routes come from the data path's own table and shares from its own split, so the plan cannot differ from what runs.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{
    self, Affinity, ClientCertificateMode, Config, EndpointProtocol, Listener, OnDecrease, Service, TlsVersion, Version,
};
use crate::decide::route::{RouteTable, Rule};
use crate::decide::{Salt, Split, WhenEmpty};

/// Escape sequences, or nothing.
pub(super) struct Style {
    pub(super) bold: &'static str,
    pub(super) plain: &'static str,
}

/// Endpoints that are named; more are counted.
const NAMED_ENDPOINTS: usize = 4;

/// The configuration as it was read, with its defaults; the routes in order of precedence; and each version's share.
pub(super) fn json(config: &Config) -> Value {
    let mut plan = config::dump(config);
    let routes: Vec<Value> = tables(config)
        .iter()
        .flat_map(|(listeners, rules)| rules.iter().map(move |rule| (listeners, rule)))
        .map(|(listeners, rule)| {
            json!({
                "listeners": listeners.iter().map(|l| &*l.name).collect::<Vec<_>>(),
                "hostname": rule.host.as_ref().map(ToString::to_string),
                "path": { "type": rule.path.kind(), "value": rule.path.value() },
                "route": route_name(config, rule),
                "service": service_name(config, rule),
            })
        })
        .collect();
    if let Some(keys) = plan.as_object_mut() {
        keys.insert("routes".into(), routes.into());
    }
    for (position, service) in config.services.iter().enumerate() {
        let split = split(service);
        for version in 0..service.versions.len() {
            let share = split.share(version);
            if let Some(keys) =
                plan.pointer_mut(&format!("/services/{position}/versions/{version}")).and_then(Value::as_object_mut)
            {
                keys.insert("sharePercent".into(), (share * 100.0).into());
            }
        }
    }
    plan
}

/// For a person.
pub(super) fn text(config: &Config, style: &Style) -> String {
    let Style { bold, plain } = style;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };

    line(format!("{bold}Listeners{plain}"));
    let admin = match (&config.admin.token, config.admin.address.ip().is_loopback()) {
        (Some(_), _) => "writes need the token",
        (None, true) => "writes are open to this machine",
        (None, false) => "writes are refused",
    };
    let mut rows: Vec<Vec<String>> =
        config.listeners.iter().map(|l| vec![l.name.to_string(), l.address.to_string(), listener_words(l)]).collect();
    rows.push(vec!["(admin)".into(), config.admin.address.to_string(), admin.into()]);
    table(&rows, 1).into_iter().for_each(&mut line);

    for (listeners, rules) in tables(config) {
        let names: Vec<&str> = listeners.iter().map(|l| &*l.name).collect();
        line(String::new());
        line(format!("{bold}Routes on {}{plain}, the first match wins", names.join(", ")));
        if rules.is_empty() {
            line("  none: each request is answered with 404".into());
            continue;
        }
        let mut rows = vec![["HOST", "PATH", "SERVICE", "ROUTE"].map(str::to_owned).to_vec()];
        rows.extend(rules.iter().map(|rule| {
            vec![
                rule.host.as_ref().map_or_else(|| "*".into(), ToString::to_string),
                rule.path.to_string(),
                service_name(config, rule).to_owned(),
                route_name(config, rule).to_owned(),
            ]
        }));
        table(&rows, 1).into_iter().for_each(&mut line);
    }

    for service in &config.services {
        line(String::new());
        line(format!("{bold}Service {}{plain}", service.name));
        service_words(service).into_iter().for_each(|words| line(format!("  {words}")));
        let split = split(service);
        let mut rows = vec![["VERSION", "WEIGHT", "SHARE", "ENDPOINTS"].map(str::to_owned).to_vec()];
        rows.extend(service.versions.iter().enumerate().map(|(i, v)| {
            vec![v.name.to_string(), v.weight.value().to_string(), percent(split.share(i)), endpoints(v)]
        }));
        table(&rows, 1).into_iter().for_each(&mut line);
    }
    out
}

/// The route tables, each with the listeners that share it. Listeners that only redirect have none.
fn tables(config: &Config) -> Vec<(Vec<&Arc<Listener>>, Vec<Rule>)> {
    let mut tables: Vec<(Vec<&Arc<Listener>>, Vec<Rule>)> = Vec::new();
    for listener in config.listeners.iter().filter(|l| l.redirect_to_https.is_none()) {
        let here = config
            .routes
            .iter()
            .enumerate()
            .filter(|(_, r)| r.listeners.is_empty() || r.listeners.contains(&listener.name))
            .map(|(number, r)| (&*r.hostnames, &*r.matches, number));
        let rules = RouteTable::new(here).rules().to_vec();
        match tables.iter_mut().find(|(_, known)| *known == rules) {
            Some((listeners, _)) => listeners.push(listener),
            None => tables.push((vec![listener], rules)),
        }
    }
    tables
}

fn split(service: &Service) -> Split {
    // Shares don't depend on the salt.
    Split::new(Salt::new("", ""), service.versions.iter().map(|v| (&*v.name, v.weight)))
}

fn route_name<'a>(config: &'a Config, rule: &Rule) -> &'a str {
    config.routes.get(rule.route).map_or("", |r| &r.name)
}

fn service_name<'a>(config: &'a Config, rule: &Rule) -> &'a str {
    config.routes.get(rule.route).and_then(|r| config.services.get(r.service)).map_or("", |s| &s.name)
}

fn listener_words(listener: &Listener) -> String {
    let mut words = Vec::new();
    match (&listener.tls, &listener.redirect_to_https) {
        (Some(tls), _) => {
            let version = match tls.min_version {
                TlsVersion::V1_2 => "TLS 1.2 and 1.3",
                TlsVersion::V1_3 => "TLS 1.3",
            };
            words.push(format!("{version}, {}", count(tls.certificates.len(), "certificate")));
            words.extend(tls.client_certificates.as_ref().map(|clients| match clients.mode {
                ClientCertificateMode::Required => "certificates of clients required".to_owned(),
                ClientCertificateMode::Optional => "certificates of clients verified".to_owned(),
            }));
        }
        (None, Some(r)) => words.push(format!("redirects to https, port {}, with {}", r.port, r.status)),
        (None, None) => words.push("plain HTTP".into()),
    }
    if let Some(proxy) = &listener.proxy_protocol {
        words.push(format!("PROXY protocol from {}", list(&proxy.trusted)));
    }
    if !listener.trusted_proxies.is_empty() {
        words.push(format!("X-Forwarded-For from {}", list(&listener.trusted_proxies)));
    }
    words.join("; ")
}

fn service_words(service: &Service) -> Vec<String> {
    let mut words = Vec::new();
    if service.is_closed() {
        words.push("closed: nobody is served".into());
    }
    words.push(match (service.affinity, &service.affinity_from) {
        (Affinity::ClientIp { prefix, .. }, Some(from)) => {
            format!("affinity as Service {from} says, by /{} (IPv4) and /{} (IPv6)", prefix.v4(), prefix.v6())
        }
        (Affinity::None, _) => "affinity None: each request is decided for itself".into(),
        (Affinity::ClientIp { prefix, timeout }, None) => format!(
            "affinity ClientIP by /{} (IPv4) and /{} (IPv6), endpoints remembered for {} s",
            prefix.v4(),
            prefix.v6(),
            timeout.as_secs()
        ),
    });
    words.push(match service.when_empty {
        WhenEmpty::Fallback => "a version without endpoints: its users fall back to the others".into(),
        WhenEmpty::Fail => "a version without endpoints: its users get 503".into(),
    });
    words.push(match service.on_decrease {
        OnDecrease::Evict => "a weight that goes down: its users move at once".into(),
        OnDecrease::Drain { deadline } => {
            format!("a weight that goes down: its users stay while active, at most {} s", deadline.as_secs())
        }
        OnDecrease::Freeze => "a weight that goes down: its users stay while active".into(),
    });
    if let Some(cohort) = &service.cohort {
        words.push(format!("same canary users as all of cohort {cohort}"));
    }
    if let Some(overrides) = &service.overrides {
        let mut by = Vec::new();
        by.extend(overrides.header.as_ref().map(|h| format!("header {h}")));
        by.extend(overrides.cookie.as_ref().map(|c| format!("cookie {c}")));
        words.push(format!("version chosen by {} from {}", by.join(" or "), list(&overrides.trusted)));
    }
    if let Some(health) = &service.health {
        let port = health.port.map_or_else(|| "the endpoint's port".into(), |p| format!("port {p}"));
        words.push(format!("checked at {} on {port}", health.path));
    }
    words
}

/// Where they are, and how they are spoken to when that is not plain HTTP/1.
fn endpoints(version: &Version) -> String {
    let how = match (version.transport.protocol, &version.transport.tls) {
        (EndpointProtocol::Http1, None) => "",
        (EndpointProtocol::Http1 | EndpointProtocol::Auto, _) => " (TLS)",
        (EndpointProtocol::H2c, _) => " (HTTP/2)",
        (EndpointProtocol::H2, _) => " (HTTP/2 over TLS)",
    };
    places(version) + how
}

fn places(version: &Version) -> String {
    if let Some(source) = &version.kubernetes {
        return source.to_string();
    }
    let endpoints = &version.endpoints;
    match endpoints.get(..NAMED_ENDPOINTS) {
        _ if endpoints.is_empty() => "none".into(),
        Some(some) if endpoints.len() > NAMED_ENDPOINTS => {
            format!("{} and {} more", list(some), endpoints.len() - NAMED_ENDPOINTS)
        }
        _ => list(endpoints),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() { "nobody".into() } else { items.iter().map(T::to_string).collect::<Vec<_>>().join(", ") }
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `90 %`, `33.33 %`; a share that rounds to nothing is not nothing.
fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.00005 {
        return "<0.01 %".into();
    }
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Columns under each other, indented.
fn table(rows: &[Vec<String>], indent: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = "  ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String does not fail.
                write!(line, "{cell:width$}  ").unwrap_or_default();
            }
            line
        })
        .collect()
}

//! A configuration as it would be written: the file's own key names, every default filled in, secrets redacted.
//!
//! For `/config` and `--print-config`. JSON is YAML, so a dump without secrets loads again, and is the same.

use std::fmt::Display;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::model::{
    Affinity, ClientCertificateMode, Config, EndpointTls, HealthCheck, KubernetesPort, Listener, LogFormat,
    MemoryLimit, OnDecrease, PathMatch, Rollout, Route, Secret, Service, SharedState, TlsVersion, Version,
};
use super::rollout::percent;
use super::scalar::{duration_text, size_text};
use super::transport;
use crate::decide::WhenEmpty;
use crate::decide::ramp::Step;

/// Stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// The whole configuration.
#[must_use]
pub fn dump(config: &Config) -> Value {
    object([
        ("workers", config.workers.map(Value::from)),
        (
            "admin",
            some(object([
                ("address", some(config.admin.address.to_string())),
                ("token", config.admin.token.as_ref().map(redacted)),
            ])),
        ),
        ("accessLog", some(json!({ "format": format(config.access_log.format), "sample": config.access_log.sample }))),
        (
            "drain",
            some(json!({
                "delay": time(config.drain.delay),
                "spread": time(config.drain.spread),
                "deadline": time(config.drain.deadline),
            })),
        ),
        ("limits", some(json!({ "maxConnections": config.max_connections, "memory": memory(config.memory) }))),
        ("affinity", some(json!({ "maxPins": config.pins.max_entries }))),
        ("stateDir", config.state_dir.as_ref().map(|dir| dir.to_string_lossy().into())),
        ("kubernetes", config.shared_state.as_ref().map(shared_state)),
        ("listeners", some(config.listeners.iter().map(|l| listener(l)).collect::<Value>())),
        ("routes", some(config.routes.iter().map(|r| route(r, config)).collect::<Value>())),
        ("services", some(config.services.iter().map(service).collect::<Value>())),
    ])
}

fn memory(limit: MemoryLimit) -> String {
    match limit {
        MemoryLimit::Cgroup => "cgroup".to_owned(),
        MemoryLimit::Off => "none".to_owned(),
        MemoryLimit::Bytes(bytes) => size_text(bytes),
    }
}

fn shared_state(state: &SharedState) -> Value {
    json!({"state": {
        "configMap": state.config_map, "lease": state.lease, "leaseDuration": time(state.lease_duration),
    }})
}

/// An object of the keys that have a value.
fn object<const N: usize>(keys: [(&str, Option<Value>); N]) -> Value {
    Value::Object(keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<Map<_, _>>())
}

fn some(value: impl Into<Value>) -> Option<Value> {
    Some(value.into())
}

fn redacted(_: &Secret) -> Value {
    REDACTED.into()
}

fn time(duration: Duration) -> String {
    duration_text(duration)
}

fn texts<T: Display>(items: &[T]) -> Value {
    items.iter().map(T::to_string).collect()
}

fn listener(listener: &Listener) -> Value {
    let (t, l) = (&listener.timeouts, &listener.limits);
    let tls = listener.tls.as_ref().map(|tls| {
        let pair = |c: &super::CertificateFiles| json!({ "certFile": c.cert_file, "keyFile": c.key_file });
        let clients = tls.client_certificates.as_ref().map(|c| {
            let mode = match c.mode {
                ClientCertificateMode::Required => "required",
                ClientCertificateMode::Optional => "optional",
            };
            json!({ "mode": mode, "caCertificates": c.ca_files })
        });
        let mut dumped = json!({
            "certificates": tls.certificates.iter().map(pair).collect::<Value>(),
            "minVersion": match tls.min_version {
                TlsVersion::V1_2 => "1.2",
                TlsVersion::V1_3 => "1.3",
            },
            "strictSni": tls.strict_sni,
        });
        if let (Some(clients), Some(map)) = (clients, dumped.as_object_mut()) {
            map.insert("clientCertificates".to_owned(), clients);
        }
        dumped
    });
    object([
        ("name", some(&*listener.name)),
        ("address", some(listener.address.to_string())),
        ("tls", tls),
        ("redirectToHttps", listener.redirect_to_https.map(|r| json!({ "port": r.port, "status": r.status }))),
        (
            "proxyProtocol",
            listener
                .proxy_protocol
                .as_ref()
                .map(|p| json!({ "trusted": texts(&p.trusted), "timeout": time(p.timeout) })),
        ),
        ("trustedProxies", some(texts(&listener.trusted_proxies))),
        (
            "timeouts",
            some(json!({
                "tlsHandshake": time(t.tls_handshake),
                "firstByte": time(t.first_byte),
                "head": time(t.head),
                "body": time(t.body),
                "write": time(t.write),
                "idle": time(t.idle),
                "upgradedIdle": time(t.upgraded_idle),
            })),
        ),
        (
            "limits",
            some(json!({
                "headBytes": l.head_bytes,
                "targetBytes": l.target_bytes,
                "fields": l.fields,
                "connections": l.connections,
                "connectionsPerClient": l.connections_per_client,
                "streams": l.streams,
                "bodyRate": l.body_rate,
            })),
        ),
    ])
}

fn route(route: &Route, config: &Config) -> Value {
    let path = |m: &PathMatch| json!({ "path": { "type": m.kind(), "value": m.value() } });
    let listeners: Value = route.listeners.iter().map(|l| &**l).collect();
    object([
        ("name", some(&*route.name)),
        ("hostnames", some(texts(&route.hostnames))),
        ("matches", some(route.matches.iter().map(path).collect::<Value>())),
        ("service", config.services.get(route.service).map(|s| (&*s.name).into())),
        // An empty list would say "on none" to a reader.
        ("listeners", (!route.listeners.is_empty()).then_some(listeners)),
    ])
}

fn service(service: &Service) -> Value {
    let t = &service.timeouts;
    let affinity = match (service.affinity, &service.affinity_from) {
        (Affinity::ClientIp { prefix, .. }, Some(from)) => object([
            ("from", some("service")),
            ("service", some(&*from.name)),
            ("namespace", from.namespace.as_deref().map(Value::from)),
            ("ipv4Prefix", some(prefix.v4())),
            ("ipv6Prefix", some(prefix.v6())),
        ]),
        (Affinity::None, _) => json!("None"),
        (Affinity::ClientIp { prefix, timeout }, None) => json!({
            "type": "ClientIP",
            "timeoutSeconds": timeout.as_secs(),
            "ipv4Prefix": prefix.v4(),
            "ipv6Prefix": prefix.v6(),
        }),
    };
    let on_decrease = match service.on_decrease {
        OnDecrease::Evict => json!("evict"),
        OnDecrease::Drain { deadline } => json!({ "type": "drain", "deadline": time(deadline) }),
        OnDecrease::Freeze => json!("freeze"),
    };
    let when_empty = match service.when_empty {
        WhenEmpty::Fallback => "fallback",
        WhenEmpty::Fail => "fail",
    };
    let overrides = service.overrides.as_ref().map(|o| {
        object([
            ("header", o.header.as_ref().map(|h| h.as_str().into())),
            ("cookie", o.cookie.as_deref().map(Value::from)),
            ("version", service.versions.get(o.version).map(|v| (&*v.name).into())),
            ("trusted", some(texts(&o.trusted))),
        ])
    });
    object([
        ("name", some(&*service.name)),
        ("cohort", service.cohort.as_deref().map(Value::from)),
        ("salt", service.salt.as_ref().map(redacted)),
        ("closed", some(service.is_closed())),
        ("affinity", some(affinity)),
        ("whenEmpty", some(when_empty)),
        ("onDecrease", some(on_decrease)),
        ("overrides", overrides),
        ("versionHeader", some(service.version_header)),
        (
            "timeouts",
            some(json!({
                "connect": time(t.connect),
                "responseHead": time(t.response_head),
                "body": time(t.body),
                "idle": time(t.idle),
            })),
        ),
        (
            "retries",
            some(json!({
                "budgetPercent": service.retries.budget_percent,
                "minPerSecond": service.retries.min_per_second,
            })),
        ),
        ("limits", some(json!({ "requestsPerEndpoint": service.limits.requests_per_endpoint }))),
        ("health", service.health.as_ref().map(health)),
        (
            "ejection",
            some(json!({
                "consecutiveFailures": service.ejection.consecutive_failures,
                "duration": time(service.ejection.duration),
                "maxPercent": service.ejection.max_percent,
            })),
        ),
        ("slowStart", some(time(service.slow_start))),
        ("rollout", some(rollout(&service.rollout))),
        ("versions", some(service.versions.iter().map(version).collect::<Value>())),
    ])
}

fn rollout(rollout: &Rollout) -> Value {
    let is_ramp = !rollout.steps.is_empty();
    let step = |s: &Step| json!({ "weight": percent(s.share), "hold": time(s.hold) });
    let guard = || {
        let rules = &rollout.guard;
        object([
            ("minRequests", some(rules.min_requests)),
            ("falseAborts", some(percent(rules.false_aborts))),
            ("errorTolerance", some(percent(rules.error_tolerance))),
            ("latencyTolerance", some(percent(rules.latency_tolerance))),
            ("maxErrorRatio", rules.max_error_ratio.map(|ratio| percent(ratio).into())),
            ("maxP99", rules.max_p99.map(|limit| time(limit).into())),
        ])
    };
    object([
        ("minReady", some(rollout.min_ready)),
        ("settle", is_ramp.then(|| time(rollout.settle).into())),
        ("steps", is_ramp.then(|| rollout.steps.iter().map(step).collect())),
        ("guard", is_ramp.then(guard)),
        ("webhook", rollout.webhook.as_ref().map(|uri| uri.to_string().into())),
        ("start", rollout.start.as_ref().map(|s| json!({ "version": &*s.version, "id": s.id }))),
    ])
}

fn health(check: &HealthCheck) -> Value {
    object([
        ("path", some(&*check.path)),
        ("port", check.port.map(Value::from)),
        ("interval", some(time(check.interval))),
        ("timeout", some(time(check.timeout))),
        ("rise", some(check.rise)),
        ("fall", some(check.fall)),
        ("panicPercent", some(check.panic_percent)),
    ])
}

fn version(version: &Version) -> Value {
    let kubernetes = version.kubernetes.as_ref().map(|source| {
        object([
            ("service", some(&*source.service.name)),
            (
                "port",
                some(match &source.port {
                    KubernetesPort::Name(name) => Value::from(&**name),
                    KubernetesPort::Number(number) => (*number).into(),
                }),
            ),
            ("namespace", source.service.namespace.as_deref().map(Value::from)),
            ("podLabels", (!source.pod_labels.is_empty()).then(|| json!(source.pod_labels))),
        ])
    });
    object([
        ("name", some(&*version.name)),
        ("weight", some(number(version.weight.value()))),
        ("endpoints", kubernetes.is_none().then(|| texts(&version.endpoints))),
        ("kubernetes", kubernetes),
        ("protocol", some(transport::word(version.transport.protocol))),
        ("tls", version.transport.tls.as_ref().map(endpoint_tls)),
    ])
}

fn endpoint_tls(tls: &EndpointTls) -> Value {
    let system = tls.ca_files.is_empty();
    let pair = |c: &super::CertificateFiles| json!({ "certFile": c.cert_file, "keyFile": c.key_file });
    object([
        (
            "validation",
            some(object([
                ("caCertificates", (!system).then(|| json!(tls.ca_files))),
                ("wellKnownCACertificates", system.then(|| "System".into())),
                ("hostname", tls.hostname.as_deref().map(Value::from)),
            ])),
        ),
        ("clientCertificate", tls.client_certificate.as_ref().map(pair)),
    ])
}

/// 90, not 90.0.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
        let whole = value as i64;
        whole.into()
    } else {
        value.into()
    }
}

const fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Off => "off",
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    }
}

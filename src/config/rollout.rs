//! `rollout` of a service: the steps of a guarded ramp, what the guard allows, and who is told of an abort.
//!
//! Shares are written with %, so that nobody takes a weight of 1 for everything.

use std::time::Duration;

use http::Uri;

use super::decode::{Map, Node};
use super::model::{Rollout, Start, Version};
use super::scalar::shown;
use crate::decide::guard::Rules;
use crate::decide::ramp::Step;

/// A step may take a week. Less than a tenth of a second is not even one look of the guard.
const HOLD: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);
/// Of the last step, after which nothing comes.
const LAST_HOLD: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(7 * 86_400);
const SETTLE: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// The guard's histogram ends at 134 s.
const P99: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(120);

/// `versions` is `None` when they can't be read.
pub(super) fn decode(node: &Node<'_>, versions: Option<&[Version]>) -> Rollout {
    let mut rollout = Rollout::default();
    let Some(mut map) = node.map() else { return rollout };
    rollout.min_ready = map.integer("minReady", rollout.min_ready, 1..=10_000);
    let ramp_keys: Vec<Node<'_>> =
        ["settle", "guard", "webhook", "start"].map(|key| map.take(key)).into_iter().flatten().collect();
    let steps_node = map.take("steps");
    if let Some(steps) = &steps_node {
        rollout.steps = decode_steps(steps, versions);
    }
    let key = |name: &str| ramp_keys.iter().find(|n| n.path().ends_with(&format!(".{name}")));
    rollout.settle = key("settle").and_then(|n| n.duration(SETTLE)).unwrap_or(rollout.settle);
    rollout.guard = key("guard").map_or_else(Rules::default, guard);
    rollout.webhook = key("webhook").and_then(|n| n.read("a URL such as http://127.0.0.1:9095/aborted", webhook));
    rollout.start = key("start").and_then(|n| start(n, versions));
    if steps_node.is_none() {
        for node in &ramp_keys {
            node.problem("has no meaning without steps; write steps beside it, or remove it");
        }
    }
    map.finish();
    rollout
}

fn decode_steps(node: &Node<'_>, versions: Option<&[Version]>) -> Vec<Step> {
    let Some(nodes) = node.filled_list("steps such as {weight: 5%, hold: 10m}") else { return Vec::new() };
    if versions.is_some_and(|v| v.len() < 2) {
        node.problem("the service has only one version; write a second one, or remove the steps");
    }
    let mut steps: Vec<Step> = Vec::new();
    // Of the step before, when it could be read.
    let mut before: Option<f64> = None;
    for (at, item) in nodes.iter().enumerate() {
        let Some(mut map) = item.map() else {
            before = None;
            continue;
        };
        let wanted = "a share above 0% and up to 100%, such as 5%";
        let weight = map.need("weight", wanted);
        let share = weight.as_ref().and_then(|n| share(n, wanted, |share| share > 0.0 && share <= 1.0));
        let is_last = at + 1 == nodes.len();
        let hold = match is_last {
            true => map.duration("hold", Duration::ZERO, LAST_HOLD),
            false => {
                let hold = map.need("hold", "a duration such as 10m").and_then(|n| n.duration(HOLD));
                hold.unwrap_or_default()
            }
        };
        map.finish();
        if let (Some(node), Some(share)) = (&weight, share) {
            if let Some(before) = before.filter(|before| share <= *before) {
                node.problem(format!(
                    "{} is not more than the {} of the step before; write steps that grow",
                    percent(share),
                    percent(before)
                ));
            } else if is_last && share < 1.0 {
                node.problem(format!("the steps end at {}; write a last step of 100%", percent(share)));
            }
        }
        before = share;
        steps.extend(share.map(|share| Step { share, hold }));
    }
    steps
}

fn guard(node: &Node<'_>) -> Rules {
    let mut rules = Rules::default();
    let Some(mut map) = node.map() else { return rules };
    rules.min_requests = map.integer("minRequests", rules.min_requests, 1..=1_000_000_000);
    let mut take =
        |key, wanted: &str, is_valid: fn(f64) -> bool| map.take(key).and_then(|n| share(&n, wanted, is_valid));
    let false_aborts = take("falseAborts", "a share from 0.0001% to 50%, such as 1%", |s| (1e-6..=0.5).contains(&s));
    let tolerance = "a share from 0% to 1000%, such as 10%";
    let error_tolerance = take("errorTolerance", tolerance, |s| (0.0..=10.0).contains(&s));
    let latency_tolerance = take("latencyTolerance", tolerance, |s| (0.0..=10.0).contains(&s));
    rules.max_error_ratio =
        take("maxErrorRatio", "a share above 0% and below 100%, such as 5%", |s| s > 0.0 && s < 1.0);
    rules.false_aborts = false_aborts.unwrap_or(rules.false_aborts);
    rules.error_tolerance = error_tolerance.unwrap_or(rules.error_tolerance);
    rules.latency_tolerance = latency_tolerance.unwrap_or(rules.latency_tolerance);
    rules.max_p99 = map.take("maxP99").and_then(|n| n.duration(P99));
    map.finish();
    rules
}

fn start(node: &Node<'_>, versions: Option<&[Version]>) -> Option<Start> {
    let mut map: Map<'_> = node.map()?;
    let version = map.need("version", "the version that is to take over").and_then(|n| {
        let name = n.name()?;
        if let Some(versions) = versions.filter(|versions| !versions.iter().any(|v| *v.name == *name)) {
            let names: Vec<&str> = versions.iter().map(|v| &*v.name).collect();
            n.problem(format!("{name} is no version of this service; write {}", names.join(" or ")));
        }
        Some(name)
    });
    let id = map.take("id").and_then(|n| n.text("any text that is new for each ramp"));
    map.finish();
    Some(Start { version: version?.into(), id: id.unwrap_or_default() })
}

/// `5%` as 0.05.
fn share(node: &Node<'_>, wanted: &str, is_valid: impl Fn(f64) -> bool) -> Option<f64> {
    node.read(wanted, |text| {
        let Some(number) = text.strip_suffix('%') else { return Err(format!("{} has no % behind it", shown(text))) };
        match number.trim_end().parse::<f64>() {
            Ok(percent) if is_valid(percent / 100.0) => Ok(percent / 100.0),
            Ok(_) => Err(format!("{text} is out of range")),
            Err(_) => Err(format!("{} is not a number with %", shown(text))),
        }
    })
}

/// The inverse: 0.07 is `7%`, although a hundred times 0.07 is a little more than 7.
pub(crate) fn percent(share: f64) -> String {
    format!("{}%", (share * 1e11).round() / 1e9)
}

fn webhook(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|_| format!("{} is not a URL", shown(text)))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) if !authority.as_str().contains('@') => Ok(uri),
        (Some("http"), Some(_)) => Err(format!("{} has a name or password in it", shown(text))),
        (Some("https"), _) => Err("https is not spoken to webhooks".to_owned()),
        _ => Err(format!("{} is not a URL with http:// and a host", shown(text))),
    }
}

//! The verdict: expectations against counts.
//!
//! Pure: counts in, findings out. A finding says what was expected, what was seen and how likely that is by chance.

use std::str::FromStr;

use serde::Serialize;

use super::outcome::{Counts, Resolution};
use crate::decide::stats::{accepted, binomial_p, chi_square_p, half_width};

/// `canary=10%`.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    pub version: String,
    /// 0 to 1.
    pub share: f64,
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: write VERSION=PERCENT%, as in canary=10%");
        let (version, percent) = text.rsplit_once('=').ok_or_else(wrong)?;
        let percent: f64 = percent.strip_suffix('%').ok_or_else(wrong)?.trim().parse().map_err(|_| wrong())?;
        if version.is_empty() || !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self { version: version.to_owned(), share: percent / 100.0 })
    }
}

/// What a share is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unit {
    /// Users: each counts once, for the version that served it first; a client that sees two is a violation
    Clients,
    /// Requests: for a split without affinity; clients may see several versions
    Requests,
}

impl Unit {
    /// As in a sentence.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Requests => "requests",
        }
    }
}

/// What must hold.
#[derive(Clone, Debug)]
pub struct Rules {
    pub expect: Vec<Expectation>,
    pub unit: Unit,
    pub alpha: f64,
    /// Share of the requests that may fail, 0 to 1.
    pub max_errors: f64,
    /// The clients can be told apart.
    pub has_clients: bool,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// `share`, `flips`, `errors`, `served`, `direction`, `movement`.
    pub check: &'static str,
    pub holds: bool,
    pub version: Option<String>,
    pub expected: Option<f64>,
    pub seen: Option<f64>,
    pub n: Option<u64>,
    pub p_value: Option<f64>,
    /// `exact-binomial` or `chi-square`.
    pub test: Option<&'static str>,
    pub statement: String,
}

impl Finding {
    /// Without figures.
    #[must_use]
    pub const fn plain(check: &'static str, holds: bool, statement: String) -> Self {
        Self { check, holds, version: None, expected: None, seen: None, n: None, p_value: None, test: None, statement }
    }
}

/// 0.1 -> `10 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// 12345 -> `12,345`.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn p_text(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_owned() } else { format!("p = {p:.4}") }
}

/// Everything but the movement of a ramp.
#[must_use]
pub fn judge(counts: &Counts, rules: &Rules) -> Vec<Finding> {
    let mut findings = shares(counts, rules);
    if rules.has_clients {
        findings.extend(flips(counts, rules));
        let unserved = counts.clients.unserved;
        if unserved > 0 && rules.unit == Unit::Clients {
            findings.push(Finding::plain(
                "served",
                true,
                format!("{} clients got no answer that tells a version; they are left out", grouped(unserved)),
            ));
        }
    }
    findings.push(errors(counts, rules));
    findings
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn errors(counts: &Counts, rules: &Rules) -> Finding {
    let rate = if counts.requests == 0 { 0.0 } else { counts.errors as f64 / counts.requests as f64 };
    let holds = rate <= rules.max_errors && counts.answers > 0;
    let statement = if counts.answers == 0 {
        "no request got an answer".to_owned()
    } else {
        format!(
            "{} of {} requests failed ({}; at most {} may)",
            grouped(counts.errors),
            grouped(counts.requests),
            percent(rate),
            percent(rules.max_errors)
        )
    };
    Finding {
        expected: Some(rules.max_errors),
        seen: Some(rate),
        n: Some(counts.requests),
        ..Finding::plain("errors", holds, statement)
    }
}

fn flips(counts: &Counts, rules: &Rules) -> Option<Finding> {
    if counts.versions.iter().all(|v| v.requests == 0) {
        return None;
    }
    let (flipped, served) = (counts.clients.flipped, counts.clients.served);
    let allowed = rules.unit == Unit::Requests;
    let statement = if flipped == 0 {
        format!("each of {} clients saw one version only", grouped(served))
    } else {
        format!(
            "{} of {} clients saw more than one version, {} changes in all{}",
            grouped(flipped),
            grouped(served),
            grouped(counts.flips.count),
            if allowed { " (allowed with --unit requests)" } else { "" }
        )
    };
    Some(Finding { n: Some(served), ..Finding::plain("flips", flipped == 0 || allowed, statement) })
}

/// Of the unit that the rules judge by: (hits of `version`, all).
fn hits(counts: &Counts, unit: Unit, version: &str) -> (u64, u64) {
    let of = counts.versions.iter().find(|v| *v.version == *version);
    match unit {
        Unit::Clients => (of.map_or(0, |v| v.clients), counts.clients.served),
        Unit::Requests => (of.map_or(0, |v| v.requests), counts.answers),
    }
}

fn shares(counts: &Counts, rules: &Rules) -> Vec<Finding> {
    if let [_, _, ..] = *rules.expect
        && let Some(finding) = together(counts, rules)
    {
        return vec![finding];
    }
    // Each by itself: the chance of a false alarm is shared among them (Bonferroni).
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let alpha = rules.alpha / rules.expect.len().max(1) as f64;
    rules.expect.iter().map(|expectation| one(counts, rules.unit, expectation, alpha)).collect()
}

/// One share, by the exact binomial test.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn one(counts: &Counts, unit: Unit, expectation: &Expectation, alpha: f64) -> Finding {
    let (hits, n) = hits(counts, unit, &expectation.version);
    let p = binomial_p(hits, n, expectation.share);
    let seen = if n == 0 { 0.0 } else { hits as f64 / n as f64 };
    let holds = n > 0 && p >= alpha;
    let statement = format!(
        "{}: expected {} of the {}, saw {} ({} of {}; {})",
        expectation.version,
        percent(expectation.share),
        unit.label(),
        percent(seen),
        grouped(hits),
        grouped(n),
        p_text(p)
    );
    Finding {
        version: Some(expectation.version.clone()),
        expected: Some(expectation.share),
        seen: Some(seen),
        n: Some(n),
        p_value: Some(p),
        test: Some("exact-binomial"),
        ..Finding::plain("share", holds, statement)
    }
}

/// Several shares at once by chi-square, the rest as one more; `None` where counts are too small for it.
fn together(counts: &Counts, rules: &Rules) -> Option<Finding> {
    let mut expected: Vec<f64> = rules.expect.iter().map(|e| e.share).collect();
    let mut observed: Vec<u64> = rules.expect.iter().map(|e| hits(counts, rules.unit, &e.version).0).collect();
    let n = hits(counts, rules.unit, "").1;
    let rest = n - observed.iter().sum::<u64>().min(n);
    let rest_share = 1.0 - expected.iter().sum::<f64>();
    if rest_share > 1e-9 {
        expected.push(rest_share);
        observed.push(rest);
    } else if rest > 0 {
        // The expectations leave nothing for other versions: exact tests cannot see those, so say it here.
        return Some(Finding::plain(
            "share",
            false,
            format!(
                "{} of {} {} got a version that is not expected at all",
                grouped(rest),
                grouped(n),
                rules.unit.label()
            ),
        ));
    }
    let p = chi_square_p(&observed, &expected)?;
    let each: Vec<String> = rules
        .expect
        .iter()
        .map(|e| {
            let (hits, n) = hits(counts, rules.unit, &e.version);
            #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
            let seen = if n == 0 { 0.0 } else { hits as f64 / n as f64 };
            format!("{}: expected {}, saw {}", e.version, percent(e.share), percent(seen))
        })
        .collect();
    Some(Finding {
        n: Some(n),
        p_value: Some(p),
        test: Some("chi-square"),
        ..Finding::plain(
            "share",
            p >= rules.alpha,
            format!("{} (of {} {}; {})", each.join("; "), grouped(n), rules.unit.label(), p_text(p)),
        )
    })
}

/// What this many clients (or requests) can show about each expected share.
#[must_use]
pub fn resolution(counts: &Counts, rules: &Rules) -> Vec<Resolution> {
    let (_, n) = hits(counts, rules.unit, "");
    // Without an expectation: about what was seen most rarely.
    let rarest = counts.versions.iter().map(|v| match rules.unit {
        Unit::Clients => v.clients_share.value,
        Unit::Requests => v.requests_share.value,
    });
    let shares: Vec<f64> = match rules.expect.as_slice() {
        [] => rarest.filter(|s| *s > 0.0 && *s < 1.0).min_by(f64::total_cmp).into_iter().collect(),
        some => some.iter().map(|e| e.share).collect(),
    };
    let one = |share: f64| {
        let plus_minus = half_width(n, share);
        let accepts = accepted(n, share, rules.alpha);
        let statement = format!(
            "{} {}: a share of {} is known to ±{:.1} points (95 %); at alpha {} a count of {} to {} is accepted",
            grouped(n),
            rules.unit.label(),
            percent(share),
            plus_minus * 100.0,
            rules.alpha,
            grouped(accepts.0),
            grouped(accepts.1),
        );
        Resolution { share, unit: rules.unit.label(), n, plus_minus, accepts, statement }
    };
    if n == 0 { Vec::new() } else { shares.into_iter().map(one).collect() }
}

#[cfg(test)]
#[path = "verdict/tests.rs"]
mod tests;

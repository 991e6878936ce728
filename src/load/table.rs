//! The outcome for a person at a terminal.

use std::fmt::Write;

use super::outcome::{Counts, Latency, Outcome, Step, Verdict};
use super::verdict::grouped;
use crate::decide::stats::Share;

/// The whole outcome as text, with its last line the verdict.
#[must_use]
pub fn text(outcome: &Outcome) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    write(&mut out, outcome).ok();
    out
}

fn write(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let (run, total) = (&outcome.run, &outcome.total);
    let addresses = match run.ranges.as_slice() {
        [] => "all from one address".to_owned(),
        ranges => format!("addresses of {} by {}", ranges.join(", "), run.identity),
    };
    writeln!(out, "{} ({}, {})", run.urls.join(" "), run.address, run.protocol)?;
    let clients =
        if run.ranges.is_empty() { String::new() } else { format!("{} clients, ", grouped(run.clients.into())) };
    writeln!(
        out,
        "{clients}{addresses}; {} requests in {:.1} s, {} per second",
        grouped(total.requests),
        total.seconds,
        grouped(whole(total.requests_per_second)),
    )?;
    if let Some(why) = &outcome.interruption {
        writeln!(out, "interrupted: {why}; these are the figures up to then")?;
    }
    writeln!(out)?;
    let ramp = !outcome.steps.is_empty();
    if ramp {
        steps(out, &outcome.steps)?;
        writeln!(out)?;
    }
    versions(out, total, !run.ranges.is_empty() && !ramp)?;
    writeln!(out)?;
    if run.warm_up_seconds > 0.0 {
        writeln!(out, "latencies are without those of the first {} s", run.warm_up_seconds)?;
    }
    connections(out, total)?;
    errors(out, total)?;
    if ramp {
        outcome.steps.iter().try_for_each(|step| flips(out, &step.counts))?;
    } else {
        flips(out, total)?;
    }
    for resolution in &outcome.resolution {
        writeln!(out, "{}", resolution.statement)?;
    }
    writeln!(out)?;
    step_findings(out, &outcome.steps)?;
    for finding in &outcome.findings {
        line(out, finding.holds, finding.check, &finding.statement)?;
    }
    match outcome.verdict {
        Verdict::Holds => writeln!(out, "PASS: everything that was expected holds"),
        Verdict::Measured => writeln!(out, "PASS: nothing went wrong; no share was expected (--expect canary=10%)"),
        Verdict::Violated => writeln!(out, "FAIL: {} of the findings above do not hold", outcome.violations.len()),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of requests")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

fn line(out: &mut String, holds: bool, check: &str, statement: &str) -> std::fmt::Result {
    writeln!(out, "{} {check:<9} {statement}", if holds { "holds" } else { "FAILS" })
}

/// What fails, step by step; of what holds, how often.
fn step_findings(out: &mut String, steps: &[Step]) -> std::fmt::Result {
    let all = || steps.iter().flat_map(|s| s.findings.iter().map(move |f| (s.percent, f)));
    for (percent, finding) in all().filter(|(_, f)| !f.holds) {
        line(out, false, finding.check, &format!("at {percent} %: {}", finding.statement))?;
    }
    for (check, what) in STEP_CHECKS {
        let count = all().filter(|(_, f)| f.check == check).count();
        let held = all().filter(|(_, f)| f.check == check && f.holds).count();
        if held > 0 {
            line(out, true, check, &format!("in {held} of {count} steps: {what}"))?;
        }
    }
    Ok(())
}

/// In the order of reading.
const STEP_CHECKS: [(&str, &str); 6] = [
    ("share", "the clients of the version are as many as its weight says"),
    ("flips", "nobody saw two versions while the weights stood still"),
    ("direction", "clients moved only as the change of the weight explains"),
    ("movement", "no more clients moved than the share changed by"),
    ("emptied", "at 0 % no request reached the version any more"),
    ("errors", "requests failed no more than they may"),
];

fn versions(out: &mut String, counts: &Counts, clients: bool) -> std::fmt::Result {
    let mut header = vec!["version".to_owned()];
    if clients {
        header.extend(["clients", "share", "95 % interval"].map(str::to_owned));
    }
    header.extend(["requests", "share", "errors", "p50 ms", "p90", "p99", "p99.9", "max"].map(str::to_owned));
    let mut rows = vec![header];
    for version in &counts.versions {
        let mut row = vec![version.version.to_string()];
        if clients {
            row.push(grouped(version.clients));
            row.extend(share(version.clients_share));
        }
        row.push(grouped(version.requests));
        row.push(format!("{:.2} %", version.requests_share.value * 100.0));
        row.push(grouped(version.errors));
        row.extend(latency(version.latency_ms));
        rows.push(row);
    }
    columns(out, &rows)
}

fn share(share: Share) -> [String; 2] {
    [format!("{:.2} %", share.value * 100.0), format!("{:.2} - {:.2} %", share.low * 100.0, share.high * 100.0)]
}

fn latency(latency: Option<Latency>) -> [String; 5] {
    Latency::columns(latency).map(|ms| match ms {
        None => "-".to_owned(),
        Some(ms @ 0.0..10.0) => format!("{ms:.2}"),
        Some(ms @ 10.0..100.0) => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    })
}

/// First column to the left, the others to the right.
fn columns(out: &mut String, rows: &[Vec<String>]) -> std::fmt::Result {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (at, (text, width)) in row.iter().zip(&widths).enumerate() {
            if at == 0 {
                write!(line, "{text:<width$}")?;
            } else {
                write!(line, "  {text:>width$}")?;
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn steps(out: &mut String, steps: &[Step]) -> std::fmt::Result {
    let heads =
        ["step", "generation", "clients", "share", "95 % interval", "moved", "at least", "unexplained", "flips"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for step in steps {
        let version = step.findings.iter().find(|f| f.check == "share").and_then(|f| f.version.as_deref());
        let of = step.counts.versions.iter().find(|v| Some(&*v.version) == version);
        let mut row = vec![
            format!("{} %", step.percent),
            step.generation.to_string(),
            of.map_or_else(String::new, |v| grouped(v.clients)),
        ];
        row.extend(of.map_or_else(|| [String::new(), String::new()], |v| share(v.clients_share)));
        match &step.moves {
            Some(moves) => {
                row.push(grouped(moves.moved));
                #[expect(clippy::cast_precision_loss, reason = "a count of clients")]
                row.push(grouped(whole(moves.fewest * moves.clients as f64)));
                row.push(grouped(moves.unexplained));
            }
            None => row.extend(["-", "-", "-"].map(str::to_owned)),
        }
        row.push(grouped(step.counts.flips.count));
        rows.push(row);
    }
    columns(out, &rows)
}

fn connections(out: &mut String, counts: &Counts) -> std::fmt::Result {
    let connections = &counts.connections;
    write!(out, "{} connections", grouped(connections.opened))?;
    if connections.tls_handshakes > 0 {
        write!(out, ", {} TLS handshakes", grouped(connections.tls_handshakes))?;
    }
    if connections.connect_ms.is_some() {
        let [p50, _, p99, ..] = latency(connections.connect_ms);
        write!(out, " (p50 {p50} ms, p99 {p99} ms)")?;
    }
    if connections.stale_retries > 0 {
        write!(out, ", {} requests sent again after the server had closed", grouped(connections.stale_retries))?;
    }
    writeln!(out, "; sent {}, received {}", bytes(counts.bytes.sent), bytes(counts.bytes.received))?;
    if counts.schedule_lag_ms.is_some() {
        let [p50, _, p99, _, max] = latency(counts.schedule_lag_ms);
        writeln!(out, "schedule kept to p50 {p50} ms, p99 {p99} ms, max {max} ms; latencies count from the schedule")?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn errors(out: &mut String, counts: &Counts) -> std::fmt::Result {
    for (kind, error) in &counts.errors_by_kind {
        writeln!(out, "error {kind}: {}; the first: {}", grouped(error.count), error.first.replace('\n', "\n    "))?;
    }
    Ok(())
}

fn flips(out: &mut String, counts: &Counts) -> std::fmt::Result {
    for flip in &counts.flips.first {
        let address = flip.address.as_deref().unwrap_or("");
        writeln!(
            out,
            "flip: client {} {address} at {:.3} s: {} -> {}",
            flip.client, flip.at_seconds, flip.from, flip.to
        )?;
    }
    let more = counts.flips.count.saturating_sub(counts.flips.first.len() as u64);
    if more > 0 {
        writeln!(out, "flip: and {} more", grouped(more))?;
    }
    Ok(())
}

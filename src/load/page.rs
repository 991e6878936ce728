//! The outcome as one self-contained page: no script, no font, nothing to fetch.
//!
//! Colours are CSS variables, so the page and its plots follow the reader's light or dark setting.

use std::fmt::Write;

use super::outcome::{Counts, Latency, Outcome, Step, Verdict};
use super::verdict::{Finding, grouped};

mod plots;

pub use plots::Unplottable;

const STYLE: &str = include_str!("page/style.css");

/// The page.
///
/// # Errors
/// When the plotting library refuses a plot.
pub fn html(outcome: &Outcome) -> Result<String, Unplottable> {
    let mut out = String::new();
    let title = outcome.run.urls.first().map_or("", String::as_str);
    let (class, word) = match outcome.verdict {
        Verdict::Holds => ("good", "holds"),
        Verdict::Measured => ("good", "measured"),
        Verdict::Violated => ("bad", "does not hold"),
    };
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\">\n");
    push(&mut out, format_args!("<title>perch load: {}</title>\n<style>\n{STYLE}</style>\n", escape(title)));
    push(&mut out, format_args!("<h1>{} <span class=\"{class}\">{word}</span></h1>\n", escape(title)));
    summary(&mut out, outcome);
    findings(&mut out, outcome);
    legend(&mut out, &outcome.total);
    figure(&mut out, "Share per version over time", SHARE_NOTE, &plots::shares(outcome)?);
    if !outcome.steps.is_empty() {
        figure(&mut out, "Steps of the ramp", STEPS_NOTE, &plots::steps(outcome)?);
        steps(&mut out, &outcome.steps);
    }
    figure(&mut out, "Latency distribution per version", LATENCY_NOTE, &plots::latencies(outcome)?);
    versions(&mut out, outcome);
    figure(&mut out, "Errors over time", "Failed requests per second.", &plots::errors(outcome)?);
    errors(&mut out, &outcome.total);
    flips(&mut out, outcome);
    out.push_str("</html>\n");
    Ok(out)
}

const SHARE_NOTE: &str = "Of the visits in each stretch of time (one visit is one client), with the 95 % interval. \
                          Dashed: what was expected.";
const STEPS_NOTE: &str =
    "Share of the clients at each step, with the 95 % interval. The bar is the weight that was set.";
const LATENCY_NOTE: &str = "How many of the requests were answered within how many milliseconds.";

/// Writing to a String cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_else(|_| unreachable!("a String takes everything"));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn figure(out: &mut String, title: &str, note: &str, svg: &str) {
    push(out, format_args!("<figure>\n<h2>{title}</h2>\n<figcaption>{note}</figcaption>\n{svg}</figure>\n"));
}

fn summary(out: &mut String, outcome: &Outcome) {
    let (run, total) = (&outcome.run, &outcome.total);
    let clients = if run.ranges.is_empty() {
        "all requests from one address".to_owned()
    } else {
        format!("{} clients of {} by {}", grouped(run.clients.into()), run.ranges.join(", "), run.identity)
    };
    push(
        out,
        format_args!(
            "<p>{clients}; {} requests in {:.1} s ({:.0} per second), {}{}; {} connections; perch {}.</p>\n",
            grouped(total.requests),
            total.seconds,
            total.requests_per_second,
            run.protocol,
            if run.tls { " over TLS" } else { "" },
            grouped(total.connections.opened),
            env!("CARGO_PKG_VERSION"),
        ),
    );
    if let Some(why) = &outcome.interruption {
        push(out, format_args!("<p class=\"bad\">Interrupted: {}</p>\n", escape(why)));
    }
    for resolution in &outcome.resolution {
        push(out, format_args!("<p>{}.</p>\n", escape(&resolution.statement)));
    }
}

fn findings(out: &mut String, outcome: &Outcome) {
    let ramped = outcome.steps.iter().flat_map(|s| s.findings.iter().map(move |f| (Some(s.percent), f)));
    let plain = outcome.findings.iter().map(|f| (None, f));
    let all: Vec<(Option<f64>, &Finding)> = ramped.chain(plain).collect();
    let (held, failed): (Vec<_>, Vec<_>) = all.into_iter().partition(|f| f.1.holds);
    out.push_str("<h2>Findings</h2>\n");
    finding_rows(out, &failed);
    // A ramp has dozens that hold.
    if outcome.steps.is_empty() {
        finding_rows(out, &held);
    } else {
        push(out, format_args!("<details>\n<summary>{} findings hold</summary>\n", held.len()));
        finding_rows(out, &held);
        out.push_str("</details>\n");
    }
}

fn finding_rows(out: &mut String, findings: &[(Option<f64>, &Finding)]) {
    out.push_str("<table class=\"findings\">\n");
    for (percent, finding) in findings {
        let (class, mark) = if finding.holds { ("good", "holds") } else { ("bad", "fails") };
        let step = percent.map_or_else(String::new, |p| format!("{p} %: "));
        let (check, statement) = (finding.check, escape(&finding.statement));
        push(out, format_args!("<tr><td class=\"{class}\">{mark}<td>{check}<td>{step}{statement}\n"));
    }
    out.push_str("</table>\n");
}

fn legend(out: &mut String, total: &Counts) {
    out.push_str("<p class=\"legend\">");
    for (index, version) in total.versions.iter().enumerate() {
        let colour = plots::variable(index);
        push(out, format_args!("<span><i style=\"background:{colour}\"></i>{}</span> ", escape(&version.version)));
    }
    out.push_str("</p>\n");
}

fn row(out: &mut String, tag: &str, cells: &[String]) {
    out.push_str("<tr>");
    for cell in cells {
        push(out, format_args!("<{tag}>{}", escape(cell)));
    }
    out.push('\n');
}

fn versions(out: &mut String, outcome: &Outcome) {
    let heads = [
        "version",
        "clients",
        "share",
        "95 % interval",
        "requests",
        "share",
        "errors",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
    ];
    out.push_str("<table>\n");
    row(out, "th", &heads.map(str::to_owned));
    for version in &outcome.total.versions {
        let (share, latency) = (version.clients_share, version.latency_ms);
        let mut cells = vec![
            version.version.to_string(),
            grouped(version.clients),
            format!("{:.2} %", share.value * 100.0),
            format!("{:.2} to {:.2} %", share.low * 100.0, share.high * 100.0),
            grouped(version.requests),
            format!("{:.2} %", version.requests_share.value * 100.0),
            grouped(version.errors),
        ];
        cells.extend(Latency::columns(latency).map(|ms| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"))));
        row(out, "td", &cells);
    }
    out.push_str("</table>\n");
    if !outcome.steps.is_empty() {
        out.push_str("<p>Clients and their share are those of the last step.</p>\n");
    }
}

fn steps(out: &mut String, steps: &[Step]) {
    let heads =
        ["step", "generation", "requests", "clients moved", "at least", "unexplained moves", "flips", "findings"];
    out.push_str("<table>\n");
    row(out, "th", &heads.map(str::to_owned));
    for step in steps {
        let failed = step.findings.iter().filter(|f| !f.holds).count();
        let moves = step.moves.as_ref().map_or_else(
            || ["-", "-", "-"].map(str::to_owned),
            |m| {
                #[expect(clippy::cast_precision_loss, reason = "a count of clients")]
                let fewest = format!("{:.0}", m.fewest * m.clients as f64);
                [grouped(m.moved), fewest, grouped(m.unexplained)]
            },
        );
        let mut cells = vec![format!("{} %", step.percent), step.generation.to_string(), grouped(step.counts.requests)];
        cells.extend(moves);
        cells.push(grouped(step.counts.flips.count));
        cells.push(if failed == 0 { "all hold".to_owned() } else { format!("{failed} fail") });
        row(out, "td", &cells);
    }
    out.push_str("</table>\n");
}

fn errors(out: &mut String, total: &Counts) {
    if total.errors_by_kind.is_empty() {
        out.push_str("<p>No request failed.</p>\n");
        return;
    }
    out.push_str("<table class=\"errors\">\n");
    row(out, "th", &["error", "count", "the first"].map(str::to_owned));
    for (kind, error) in &total.errors_by_kind {
        row(out, "td", &[kind.clone(), grouped(error.count), error.first.clone()]);
    }
    out.push_str("</table>\n");
}

fn flips(out: &mut String, outcome: &Outcome) {
    let total = &outcome.total.flips;
    push(out, format_args!("<h2>Flips</h2>\n<p>{} while the weights stood still.</p>\n", grouped(total.count)));
    if total.first.is_empty() {
        return;
    }
    out.push_str("<table>\n");
    row(out, "th", &["client", "address", "at second", "from", "to"].map(str::to_owned));
    for flip in &total.first {
        let address = flip.address.clone().unwrap_or_default();
        let at = format!("{:.3}", flip.at_seconds);
        row(out, "td", &[flip.client.to_string(), address, at, flip.from.to_string(), flip.to.to_string()]);
    }
    out.push_str("</table>\n");
}

//! The plots, drawn by plotters as SVG.
//!
//! plotters writes fixed colours. The ones used here are stand-ins that become CSS variables afterwards.

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::load::outcome::{Outcome, Version};

/// The plotting library's complaint.
#[derive(Debug, thiserror::Error)]
#[error("plot: {0}")]
pub struct Unplottable(String);

const SIZE: (u32, u32) = (960, 320);
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(1, 1, 2);
const SOFT: RGBColor = RGBColor(1, 1, 3);
const BAD: RGBColor = RGBColor(1, 1, 4);
/// Version n is drawn in `VERSIONS` + n.
const VERSIONS: u8 = 1;
const VERSION_COLOURS: usize = 6;

/// The CSS variable of a version's colour; after the sixth they repeat.
pub(super) fn variable(index: usize) -> String {
    format!("var(--v{})", index % VERSION_COLOURS)
}

fn colour(index: usize) -> RGBColor {
    RGBColor(1, 2, VERSIONS + u8::try_from(index % VERSION_COLOURS).unwrap_or(0))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a clear ground and gives the SVG with its colours made variable.
fn draw(what: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>) -> Result<String, Unplottable> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        what(&area).map_err(|e| Unplottable(e.to_string()))?;
        area.present().map_err(|e| Unplottable(e.to_string()))?;
    }
    let mut stand_ins = vec![(INK, "var(--ink)".to_owned()), (GRID, "var(--grid)".to_owned())];
    stand_ins.extend([(SOFT, "var(--soft)".to_owned()), (BAD, "var(--bad)".to_owned())]);
    stand_ins.extend((0..VERSION_COLOURS).map(|n| (colour(n), variable(n))));
    for (RGBColor(r, g, b), variable) in stand_ins {
        for attribute in ["fill", "stroke"] {
            let fixed = format!("{attribute}=\"#{r:02X}{g:02X}{b:02X}\"");
            svg = svg.replace(&fixed, &format!("style=\"{attribute}:{variable}\""));
        }
    }
    // A size of its own would keep it from following the page's width.
    Ok(svg.replacen(&format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1), "", 1))
}

type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// What is written along an axis.
struct Axis<'a, T> {
    name: &'a str,
    format: &'a dyn Fn(&T) -> String,
    labels: usize,
}

impl<'a, T> Axis<'a, T> {
    fn new(name: &'a str, format: &'a dyn Fn(&T) -> String, labels: usize) -> Self {
        Self { name, format, labels }
    }
}

fn mesh<'b, X, Y>(
    chart: &mut Chart<'_, 'b, X, Y>,
    x: Axis<'_, X::ValueType>,
    y: Axis<'_, Y::ValueType>,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>>
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
{
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(SOFT)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .x_desc(x.name)
        .x_label_formatter(x.format)
        .x_labels(x.labels)
        .y_desc(y.name)
        .y_label_formatter(y.format)
        .y_labels(y.labels)
        .draw()
}

fn chart<'a, 'b>(
    area: &'a Area<'b>,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Result<Chart<'a, 'b, RangedCoordf64, RangedCoordf64>, DrawingAreaErrorKind<std::io::Error>> {
    ChartBuilder::on(area).margin(10).x_label_area_size(44).y_label_area_size(64).build_cartesian_2d(x, y)
}

fn percents(share: &f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn plain(value: &f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

fn end(outcome: &Outcome) -> f64 {
    outcome.timeline.last().map_or(1.0, |m| m.to_seconds)
}

/// Share per version over time.
pub(super) fn shares(outcome: &Outcome) -> Result<String, Unplottable> {
    draw(|area| {
        let mut chart = chart(area, 0.0..end(outcome), 0.0..1.0)?;
        mesh(&mut chart, Axis::new("seconds", &plain, 12), Axis::new("share of the visits", &percents, 6))?;
        for (index, version) in outcome.total.versions.iter().enumerate() {
            // Stretches without a visit know nothing.
            let points: Vec<(f64, crate::decide::stats::Share)> = outcome
                .timeline
                .iter()
                .filter(|m| m.versions.iter().any(|v| v.visits > 0))
                .filter_map(|m| Some(((m.from_seconds + m.to_seconds) / 2.0, m.versions.get(index)?.share)))
                .collect();
            let band: Vec<(f64, f64)> =
                points.iter().map(|(t, s)| (*t, s.low)).chain(points.iter().rev().map(|(t, s)| (*t, s.high))).collect();
            let line = points.iter().map(|(t, s)| (*t, s.value));
            chart.draw_series(std::iter::once(Polygon::new(band, colour(index).mix(0.2))))?;
            chart.draw_series(LineSeries::new(line, colour(index).stroke_width(2)))?;
            if points.len() < 3 {
                chart.draw_series(points.iter().map(|(t, s)| Circle::new((*t, s.value), 4, colour(index).filled())))?;
            }
            let expected = expected(outcome, &version.version);
            chart.draw_series(DashedLineSeries::new(expected, 6, 5, colour(index).stroke_width(1)))?;
        }
        Ok(())
    })
}

/// What a version's share should be, as a line of steps.
fn expected(outcome: &Outcome, version: &str) -> Vec<(f64, f64)> {
    let last = end(outcome);
    if outcome.steps.is_empty() {
        let of = outcome.findings.iter().find(|f| f.check == "share" && f.version.as_deref() == Some(version));
        return of.and_then(|f| f.expected).map_or_else(Vec::new, |share| vec![(0.0, share), (last, share)]);
    }
    let ends = outcome.steps.iter().skip(1).map(|s| s.starts_at_seconds).chain([last]);
    let stairs = outcome.steps.iter().zip(ends).filter_map(|(step, end)| {
        let share = *step.shares.get(version)?;
        Some([(step.starts_at_seconds, share), (end, share)])
    });
    stairs.flatten().collect()
}

/// Steps of a ramp: what was set, and what was seen.
#[expect(clippy::cast_precision_loss, reason = "a handful of steps")]
pub(super) fn steps(outcome: &Outcome) -> Result<String, Unplottable> {
    draw(|area| {
        let count = outcome.steps.len();
        let mut chart = chart(area, 0.0..count as f64, 0.0..1.0)?;
        let name = |at: &f64| {
            // Labels are asked for at each half: the middle of a step carries its name.
            let index = outcome.steps.iter().enumerate().find(|(i, _)| (*at - *i as f64 - 0.5).abs() < 0.01);
            index.map_or_else(String::new, |(_, step)| format!("{} %", step.percent))
        };
        mesh(
            &mut chart,
            Axis::new("weight that was set", &name, 2 * count + 1),
            Axis::new("share of the clients", &percents, 6),
        )?;
        for (at, step) in outcome.steps.iter().enumerate() {
            let middle = at as f64 + 0.5;
            let Some(version) = step.findings.iter().find(|f| f.check == "share").and_then(|f| f.version.as_deref())
            else {
                continue;
            };
            let versions = &step.counts.versions;
            let Some((index, of)) = versions.iter().enumerate().find(|(_, v)| &*v.version == version) else {
                continue;
            };
            let bar = [(middle - 0.3, 0.0), (middle + 0.3, step.percent / 100.0)];
            chart.draw_series([Rectangle::new(bar, colour(index).mix(0.25).filled())])?;
            let share = of.clients_share;
            let whisker = vec![(middle, share.low), (middle, share.high)];
            chart.draw_series([PathElement::new(whisker, colour(index).stroke_width(2))])?;
            chart.draw_series([Circle::new((middle, share.value), 4, colour(index).filled())])?;
            let missed = step.findings.iter().any(|f| !f.holds);
            if missed {
                let style = ("sans-serif", 13).into_font().color(&BAD);
                chart.draw_series([Text::new("fails", (middle - 0.1, (share.high + 0.06).min(0.97)), style)])?;
            }
        }
        Ok(())
    })
}

/// Latency by quantile, both axes logarithmic.
pub(super) fn latencies(outcome: &Outcome) -> Result<String, Unplottable> {
    let versions: Vec<(usize, &Version)> =
        outcome.total.versions.iter().enumerate().filter(|(_, v)| v.latency_curve.len() > 1).collect();
    let all = || versions.iter().flat_map(|(_, v)| &v.latency_curve);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).max(0.001);
    let high = all().map(|p| p.1).fold(low * 2.0, f64::max);
    let nines = all().map(|p| 1.0 / (1.0 - p.0)).fold(10.0, f64::max);
    draw(|area| {
        if versions.is_empty() {
            let style = ("sans-serif", 15).into_font().color(&SOFT);
            area.draw(&Text::new("no answers", (420, 150), style))?;
            return Ok(());
        }
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..nines).log_scale(), (low * 0.8..high * 1.25).log_scale())?;
        let quantile = |nines: &f64| {
            let text = format!("{:.5}", 100.0 - 100.0 / nines);
            format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
        };
        let millis = |ms: &f64| format!("{} ms", (ms * 1000.0).round() / 1000.0);
        mesh(&mut chart, Axis::new("requests answered within", &quantile, 7), Axis::new("latency", &millis, 12))?;
        for (index, version) in versions {
            let points = version.latency_curve.iter().map(|(q, ms)| (1.0 / (1.0 - q), ms.max(low)));
            chart.draw_series(LineSeries::new(points, colour(index).stroke_width(2)))?;
        }
        Ok(())
    })
}

/// Failed requests per second.
#[expect(clippy::cast_precision_loss, reason = "a count of errors")]
pub(super) fn errors(outcome: &Outcome) -> Result<String, Unplottable> {
    let rate = |m: &crate::load::outcome::Moment| m.errors as f64 / (m.to_seconds - m.from_seconds).max(0.001);
    let most = outcome.timeline.iter().map(rate).fold(1.0, f64::max);
    draw(|area| {
        let mut chart = chart(area, 0.0..end(outcome), 0.0..most * 1.05)?;
        mesh(&mut chart, Axis::new("seconds", &plain, 12), Axis::new("errors per second", &plain, 6))?;
        let bars = outcome
            .timeline
            .iter()
            .filter(|m| m.errors > 0)
            .map(|m| Rectangle::new([(m.from_seconds, 0.0), (m.to_seconds, rate(m))], BAD.mix(0.8).filled()));
        chart.draw_series(bars)?;
        Ok(())
    })
}

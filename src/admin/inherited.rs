//! Counters that go on when a new perch takes over: what the old one's `/metrics` said last is added to this one's.
//!
//! Counters and histograms only: a gauge says what is now. What the system counts by process (`process_`) begins anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// What the old perch said last; nothing where there was none. Held for a moment by its writer and by scrapes.
#[derive(Debug, Default)]
pub(super) struct Inherited(Mutex<Vec<Family>>);

/// One metric in Prometheus' text.
#[derive(Debug, Default, PartialEq)]
struct Family {
    name: String,
    adds_up: bool,
    /// Its comments.
    head: String,
    /// As written, and their values.
    samples: Vec<(String, f64)>,
}

impl Inherited {
    pub(super) fn set(&self, metrics: &str) {
        let families = parse(metrics).into_iter().filter(|f| f.adds_up && !f.name.starts_with("process_")).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = families;
    }

    pub(super) fn add_to(&self, own: String) -> String {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_empty() {
            return own;
        }
        let mut all = parse(&own);
        for theirs in &*before {
            match all.iter_mut().find(|f| f.name == theirs.name) {
                Some(ours) => ours.add(theirs),
                None => all.push(Family { name: theirs.name.clone(), head: theirs.head.clone(), ..theirs.again() }),
            }
        }
        let mut text = String::with_capacity(own.len() * 2);
        for family in &all {
            text.push_str(&family.head);
            for (series, value) in &family.samples {
                writeln!(text, "{series} {value}").expect("a String takes everything");
            }
            text.push('\n');
        }
        text
    }
}

impl Family {
    fn again(&self) -> Self {
        Self { adds_up: self.adds_up, samples: self.samples.clone(), ..Self::default() }
    }

    fn add(&mut self, theirs: &Self) {
        let places: HashMap<String, usize> =
            self.samples.iter().enumerate().map(|(at, (series, _))| (in_order(series), at)).collect();
        for (series, value) in &theirs.samples {
            match places.get(&in_order(series)).and_then(|at| self.samples.get_mut(*at)) {
                Some((_, ours)) => *ours += value,
                None => self.samples.push((series.clone(), *value)),
            }
        }
    }
}

/// The families of a text, in its order.
fn parse(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        let comment = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        if let Some((name, rest)) = comment.and_then(|c| c.split_once(' ')) {
            if families.last().is_none_or(|f| f.name != name) {
                families.push(Family { name: name.to_owned(), ..Family::default() });
            }
            if let Some(family) = families.last_mut() {
                family.adds_up |= line.starts_with("# TYPE ") && matches!(rest, "counter" | "histogram");
                family.head.push_str(line);
                family.head.push('\n');
            }
        } else if let Some((series, value)) = line.rsplit_once(' ')
            && let Ok(value) = value.parse()
            && let Some(family) = families.last_mut()
        {
            family.samples.push((series.to_owned(), value));
        }
    }
    families
}

/// A series with its labels sorted: another perch may write them in another order.
fn in_order(series: &str) -> String {
    let Some((name, labels)) = series.strip_suffix('}').and_then(|s| s.split_once('{')) else {
        return series.to_owned();
    };
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut labels: Vec<&str> = labels
        .split(|c| {
            let ends = c == ',' && !is_quoted;
            is_quoted ^= c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        })
        .collect();
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"1\",y=\",\\\"\"} 3\na_total{x=\"2\",y=\"\"} 1\n\n\
        # TYPE open gauge\nopen 7\n\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 9\n\n\
        # TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 4\nh_sum 2.5\nh_count 4\n\n";

    #[test]
    fn counters_and_histograms_go_on_and_nothing_else() {
        let inherited = Inherited::default();
        let own = "# HELP a_total Some.\n# TYPE a_total counter\na_total{y=\",\\\"\",x=\"1\"} 4\n\n\
            # TYPE open gauge\nopen 1\n\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1\n\n";
        assert_eq!(inherited.add_to(own.to_owned()), own);

        inherited.set(THEIRS);

        let expected = "# HELP a_total Some.\n# TYPE a_total counter\na_total{y=\",\\\"\",x=\"1\"} 7\na_total{x=\"2\",y=\"\"} 1\n\n\
            # TYPE open gauge\nopen 1\n\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1\n\n\
            # TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 4\nh_sum 2.5\nh_count 4\n\n";
        assert_eq!(inherited.add_to(own.to_owned()), expected);
    }

    #[test]
    fn a_third_perch_has_the_counts_of_both_before() {
        let (second, third) = (Inherited::default(), Inherited::default());
        second.set(THEIRS);

        third.set(&second.add_to(THEIRS.to_owned()));

        assert!(third.add_to(THEIRS.to_owned()).contains("h_sum 7.5\nh_count 12\n"));
    }
}

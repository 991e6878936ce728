//! What counts can say about a share: the statistics of the load test's verdict and of the observed shares.
//!
//! Pure functions over counts. The distributions are `statrs`'s; what is here is which tail, which interval and which
//! wording. Intervals are Wilson's at 95 % (good for small shares, never outside 0 to 1), p-values are exact and
//! two-sided.

use serde::Serialize;
use statrs::distribution::{Binomial, ChiSquared, ContinuousCDF, Discrete, DiscreteCDF};

/// The two-sided 95 % point of the normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// Pearson's rule of thumb: below this expected count the chi-square approximation is not trusted.
const LEAST_EXPECTED: f64 = 5.0;

/// A share with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// The share `hits / n` with Wilson's interval; without any trial, everything is possible.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn wilson(hits: u64, n: u64) -> Share {
    let value = if n == 0 { 0.0 } else { hits as f64 / n as f64 };
    interval(value, n as f64)
}

/// Wilson's interval around a share that was seen in `n` independent trials; they may be an effective number.
#[must_use]
pub fn interval(value: f64, n: f64) -> Share {
    if n <= 0.0 {
        return Share { value, low: 0.0, high: 1.0 };
    }
    let z2 = Z95 * Z95;
    let centre = (value + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 * (value * (1.0 - value) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n);
    // At the ends the formula is exact but rounds to 1e-17 beside them.
    let low = if value <= 0.0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if value >= 1.0 { 1.0 } else { (centre + half).min(1.0) };
    Share { value, low, high }
}

/// Half the width of the interval that `n` trials give a true share of `share`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn half_width(n: u64, share: f64) -> f64 {
    if n == 0 {
        return 1.0;
    }
    let n = n as f64;
    let z2 = Z95 * Z95;
    Z95 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n)
}

/// The exact two-sided binomial p-value: how likely a count at most as likely as `hits` is when the share is `share`.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts stay far below 2^53; the mode lies in 0..=n"
)]
pub fn binomial_p(hits: u64, n: u64, share: f64) -> f64 {
    if share <= 0.0 {
        return if hits == 0 { 1.0 } else { 0.0 };
    }
    if share >= 1.0 {
        return if hits == n { 1.0 } else { 0.0 };
    }
    let Ok(law) = Binomial::new(share, n) else { return f64::NAN };
    let mode = (((n as f64) + 1.0) * share).floor().min(n as f64) as u64;
    // Equal likelihoods must compare equal although they are computed by other roads (as R's binom.test does).
    let as_likely = law.ln_pmf(hits) + 1e-7;
    let unlikely = |k: u64| law.ln_pmf(k) <= as_likely;
    if unlikely(mode) {
        return 1.0;
    }
    // The likelihood rises up to the mode and falls after it, so each tail begins where a bisection finds it.
    if hits < mode {
        let above = first(mode, n + 1, unlikely);
        law.cdf(hits) + if above > n { 0.0 } else { law.sf(above - 1) }
    } else {
        let below = first(0, mode, |k| !unlikely(k));
        law.sf(hits - 1) + if below == 0 { 0.0 } else { law.cdf(below - 1) }
    }
    .min(1.0)
}

/// The first `k` in `from..to` for which `holds`, which is false before it and true after; `to` when none is.
fn first(mut from: u64, mut to: u64, holds: impl Fn(u64) -> bool) -> u64 {
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle) {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    from
}

/// The counts that [`binomial_p`] does not reject at `alpha`: the smallest and the largest.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts stay far below 2^53; the centre lies in 0..=n"
)]
pub fn accepted(n: u64, share: f64, alpha: f64) -> (u64, u64) {
    let centre = ((n as f64 * share).round() as u64).min(n);
    let low = first(0, centre, |k| binomial_p(k, n, share) >= alpha);
    let above = first(centre, n + 1, |k| binomial_p(k, n, share) < alpha);
    (low, above.saturating_sub(1).max(centre))
}

/// The p-value of Pearson's chi-square test of `observed` counts against shares that sum to 1; `None` where an expected
/// count is too small for it.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn chi_square_p(observed: &[u64], shares: &[f64]) -> Option<f64> {
    let n = observed.iter().sum::<u64>() as f64;
    if observed.len() < 2 || shares.iter().any(|s| s * n < LEAST_EXPECTED) {
        return None;
    }
    let statistic: f64 = observed.iter().zip(shares).map(|(o, s)| (*o as f64 - s * n).powi(2) / (s * n)).sum();
    let law = ChiSquared::new((observed.len() - 1) as f64).ok()?;
    Some(law.sf(statistic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-9), "{a} is not {b}");
    }

    #[test]
    fn wilson_gives_the_published_interval() {
        // Newcombe 1998, table I: 81 of 263.
        let share = wilson(81, 263);

        assert!((share.low - 0.2553).abs() < 5e-5 && (share.high - 0.3662).abs() < 5e-5, "{share:?}");
    }

    #[test]
    fn wilson_of_nobody_begins_at_exactly_0_and_of_everybody_ends_at_exactly_1() {
        close(wilson(0, 20).low, 0.0);
        close(wilson(20, 20).high, 1.0);
        // Newcombe 1998: 0 of 20 gives 0.0000 to 0.1611.
        assert!((wilson(0, 20).high - 0.1611).abs() < 5e-5);
    }

    #[test]
    fn a_thousand_clients_know_ten_percent_to_1_9_points() {
        assert_eq!(format!("{:.1}", half_width(1000, 0.1) * 100.0), "1.9");
    }

    #[test]
    fn binomial_p_is_that_of_binom_test() {
        // By summing the exact probabilities that are at most as large as the observed one.
        close(binomial_p(7, 10, 0.5), 0.343_75);
        close(binomial_p(0, 10, 0.5), 2.0 / 1024.0);
        close(binomial_p(5, 10, 0.5), 1.0);
        close(binomial_p(682, 925, 0.75), summed(682, 925, 0.75));
        close(binomial_p(60, 1000, 0.1), summed(60, 1000, 0.1));
        close(binomial_p(150, 1000, 0.1), summed(150, 1000, 0.1));
    }

    fn summed(hits: u64, n: u64, share: f64) -> f64 {
        let law = Binomial::new(share, n).unwrap();
        (0..=n).map(|k| law.ln_pmf(k)).filter(|l| *l <= law.ln_pmf(hits) + 1e-7).map(f64::exp).sum()
    }

    #[test]
    fn a_share_of_0_or_100_percent_admits_no_exception() {
        close(binomial_p(0, 100, 0.0), 1.0);
        close(binomial_p(1, 100, 0.0), 0.0);
        close(binomial_p(100, 100, 1.0), 1.0);
        close(binomial_p(99, 100, 1.0), 0.0);
    }

    #[test]
    fn the_accepted_counts_are_exactly_those_above_alpha() {
        for (n, share) in [(1000, 0.1), (50, 0.02), (10, 0.5), (333, 0.9), (5, 0.001)] {
            let (low, high) = accepted(n, share, 0.001);

            for k in 0..=n {
                assert_eq!(binomial_p(k, n, share) >= 0.001, (low..=high).contains(&k), "{k} of {n} at {share}");
            }
        }
    }

    #[test]
    fn chi_square_gives_the_textbook_value() {
        // 2 degrees of freedom: the survival function is exp(-x / 2), here x = 4.
        let p = chi_square_p(&[120, 100, 80], &[1.0 / 3.0; 3]).unwrap();

        close(p, (-8.0_f64 / 2.0).exp());
    }

    #[test]
    fn chi_square_is_refused_where_the_expected_count_is_small() {
        assert_eq!(chi_square_p(&[10, 1], &[0.9, 0.1]), None);
    }

    proptest::proptest! {
        #[test]
        fn a_p_value_is_a_probability(n in 1u64..100_000, part in 0.0f64..=1.0, share in 0.0f64..=1.0) {
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let hits = (n as f64 * part) as u64;
            let p = binomial_p(hits, n, share);
            proptest::prop_assert!((0.0..=1.0).contains(&p), "{p}");
        }

        #[test]
        fn the_interval_holds_the_share(hits in 0u64..5000, more in 0u64..5000) {
            let share = wilson(hits, hits + more);
            proptest::prop_assert!(share.low <= share.value && share.value <= share.high);
        }
    }
}

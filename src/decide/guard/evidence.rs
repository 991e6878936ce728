//! Evidence that a share is larger than allowed, as a game of bets: what one unit of money has become (an e-value).
//!
//! Each look bets on "the canary's odds are t times what is allowed" for several t, and pays so that nobody can expect to
//! win while the claim of the null hypothesis holds. So the money is a nonnegative supermartingale, and by Ville's
//! inequality the chance that it *ever* reaches 1/a is at most a: one may look as often as one likes, stop, and go on.
//! Money from before a restart stays money. Sources and proofs: docs/rollouts.md.

use serde::{Deserialize, Serialize};

/// The odds ratios that are bet on, beyond what is allowed, and how much of the money goes on each. From "a bit worse,
/// seen by a large sample" to "broken, seen by a handful"; a bet on more than 25 would let two failures of one unlucky
/// client decide. Half of it is on twice the odds, which takes the longest to see of what a ramp has to catch: a tenth on
/// what fails ten times as often costs a few requests there.
const BETS: [(f64, f64); 6] = [(1.5, 0.15), (2.0, 0.50), (3.0, 0.15), (5.0, 0.10), (10.0, 0.06), (25.0, 0.04)];

/// More than any threshold, and safe in JSON.
const MOST: f64 = 1e15;

/// What one unit of money has become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Not yet bet: for what may go wrong later, after long good conduct has cost the money that was in play.
    cash: f64,
    /// By odds ratio, as in [`BETS`].
    stakes: [f64; BETS.len()],
}

impl Default for Evidence {
    fn default() -> Self {
        Self { cash: 1.0, stakes: [0.0; BETS.len()] }
    }
}

impl Evidence {
    /// The e-value.
    #[must_use]
    pub fn value(&self) -> f64 {
        (self.cash + self.stakes.iter().sum::<f64>()).min(MOST)
    }

    /// Puts this share of the cash in play, before anything is seen of what it is bet on.
    pub fn stake(&mut self, share: f64) {
        let staked = self.cash * share.clamp(0.0, 1.0);
        self.cash -= staked;
        for (stake, (_, part)) in self.stakes.iter_mut().zip(BETS) {
            *stake += staked * part;
        }
    }

    /// A look at two samples of the same window. The claim of the null hypothesis: the odds of a hit are at most `allowed`
    /// (1 or more) times as high on the side of `suspect` as on the other. The odds themselves may be anything and
    /// differ from look to look, so long as both sides share them.
    pub fn compare(&mut self, suspect: Sample, other: Sample, allowed: f64) {
        let hits = suspect.hits + other.hits;
        // Given the hits of both sides together, the suspect's are a sum of independent trials, whichever side is taken
        // as drawing: `hits` draws that meet the suspect with q, or its requests that meet a hit with q'. Their mean is
        // at most hits * q (equal for allowed = 1), and for a given mean the sum's generating function is largest when
        // all trials are alike. Both bounds hold, so the smaller one does.
        let q = at_odds(suspect.size, other.size, allowed);
        let q_hit = at_odds(hits, suspect.size + other.size - hits, allowed);
        self.bet(|odds| {
            let by_hits = hits * (q * (odds - 1.0)).ln_1p();
            let by_size = suspect.size * (q_hit * (odds - 1.0)).ln_1p();
            suspect.hits * odds.ln() - by_hits.min(by_size)
        });
    }

    /// A look at one sample. The claim of the null hypothesis: the chance of a hit is at most `most` (between 0 and 1).
    pub fn cap(&mut self, suspect: Sample, most: f64) {
        self.bet(|odds| {
            let against = odds * most / (1.0 - most + odds * most);
            let misses = suspect.size - suspect.hits;
            suspect.hits * (against / most).ln() + misses * ((1.0 - against) / (1.0 - most)).ln()
        });
    }

    /// Multiplies each stake by e to the growth of its bet.
    fn bet(&mut self, growth: impl Fn(f64) -> f64) {
        for (stake, (odds, _)) in self.stakes.iter_mut().zip(BETS) {
            *stake = (*stake * growth(odds).exp()).min(MOST);
        }
    }
}

/// Share of `one` when each of it counts `odds` times; 0 when there is nothing at all.
fn at_odds(one: f64, other: f64, odds: f64) -> f64 {
    let all = odds * one + other;
    if all > 0.0 { odds * one / all } else { 0.0 }
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    hits: f64,
    size: f64,
}

impl Sample {
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of one look are far below 2^52")]
    pub fn new(hits: u64, size: u64) -> Self {
        Self { hits: hits.min(size) as f64, size: size as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staked() -> Evidence {
        let mut evidence = Evidence::default();
        evidence.stake(1.0);
        evidence
    }

    /// P(J = j) for j hits of the suspect, given all hits, when its odds are `odds` times the other's.
    fn given_hits(size: u64, other: u64, hits: u64, odds: f64) -> Vec<(u64, f64)> {
        let from = hits.saturating_sub(other);
        let mut weights = vec![(from, 1.0)];
        for j in from..hits.min(size) {
            let up = ((hits - j) * (size - j)) as f64 / ((j + 1) * (other + j + 1 - hits)) as f64;
            weights.push((j + 1, weights.last().unwrap().1 * up * odds));
        }
        let sum: f64 = weights.iter().map(|(_, w)| w).sum();
        weights.into_iter().map(|(j, w)| (j, w / sum)).collect()
    }

    #[test]
    fn nobody_can_expect_to_win_a_comparison_that_is_within_what_is_allowed() {
        for (size, other) in [(1, 99), (10, 990), (40, 60), (50, 5), (7, 0), (100, 100)] {
            for hits in [0, 1, 2, 5, (size + other) / 2, size + other - 1, size + other] {
                for allowed in [1.0, 1.1, 2.0] {
                    for truth in [0.3, 0.9, 1.0, allowed] {
                        let expected: f64 = given_hits(size, other, hits.min(size + other), truth)
                            .into_iter()
                            .map(|(j, chance)| {
                                let mut evidence = staked();
                                let rest = hits.min(size + other) - j;
                                evidence.compare(Sample::new(j, size), Sample::new(rest, other), allowed);
                                evidence.value() * chance
                            })
                            .sum();

                        assert!(expected < 1.0 + 1e-9, "{size} {other} {hits} {allowed} {truth}: {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn nobody_can_expect_to_win_against_a_ceiling_that_holds() {
        for (size, most) in [(1u64, 0.01), (30, 0.05), (60, 0.5)] {
            for truth in [0.0, most / 2.0, most] {
                let mut chance = (1.0f64 - truth).powf(size as f64);
                let mut expected = 0.0;
                for hits in 0..=size {
                    let mut evidence = staked();
                    evidence.cap(Sample::new(hits, size), most);
                    expected += evidence.value() * chance;
                    chance *= (size - hits) as f64 / (hits + 1) as f64 * truth / (1.0 - truth);
                }

                assert!(expected < 1.0 + 1e-9, "{size} {most} {truth}: {expected}");
            }
        }
    }

    #[test]
    fn a_look_without_requests_changes_nothing() {
        let mut evidence = staked();

        evidence.compare(Sample::new(0, 0), Sample::new(0, 0), 1.0);
        evidence.compare(Sample::new(3, 3), Sample::new(0, 0), 1.0);
        evidence.cap(Sample::new(0, 0), 0.1);

        assert!((evidence.value() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn money_that_is_not_staked_is_neither_won_nor_lost() {
        let mut evidence = Evidence::default();
        evidence.compare(Sample::new(9, 10), Sample::new(0, 990), 1.0);
        assert!((evidence.value() - 1.0).abs() < 1e-12);

        evidence.stake(0.5);
        evidence.compare(Sample::new(0, 10_000), Sample::new(500, 10_000), 1.0);

        assert!((evidence.value() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn evidence_survives_json_however_large() {
        let mut evidence = staked();
        (0..50).for_each(|_| evidence.compare(Sample::new(100, 100), Sample::new(0, 9_900), 1.0));

        let text = serde_json::to_string(&evidence).unwrap();

        assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
        assert!(evidence.value() >= 1e15);
    }
}

//! Setting weights: `canary=20%` (a share) or `canary=20` (a number) to the new weights of all versions.
//!
//! A share leaves the other versions' numbers alone and computes the named one's, so the others keep their ratios among
//! themselves to the last digit (contract clause 2). It does not know who asks, or what a config file is.

use std::str::FromStr;

use super::split::Weight;

/// What one version is to get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Of all clients, 0 to 1; the others keep their ratios.
    Share(f64),
    /// A weight; the others keep theirs.
    Weight(Weight),
}

/// Not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAmount {
    #[error("{0} is more than 100%; write a share of 0% to 100%")]
    Over(String),
    #[error("{0} is negative; write a number of 0 or more")]
    Negative(String),
    #[error("{0} is out of range; write 0, or a number from 0.000001 to 1000000000")]
    Range(String),
    #[error("`{0}` is no number; write a weight such as 20 or a share such as 20%")]
    Number(String),
}

/// The weights cannot be set so.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReweighError {
    #[error("no version is named; write at least one, such as canary=20%")]
    Nothing,
    #[error("there is no version `{name}`; the versions are {known}")]
    Unknown { name: String, known: String },
    #[error("version `{0}` is named twice; name it once")]
    Twice(String),
    #[error("shares and plain weights are mixed; write all with % or all without")]
    Mixed,
    #[error("the shares add up to {}%, more than 100%; lower one of them", short(*.0))]
    Over(f64),
    #[error("the shares add up to {}% and no other version is left for the rest; make them 100%", short(*.0))]
    Short(f64),
    #[error("all weights would be 0, so nobody could be served; close the service if you mean that")]
    AllZero,
    #[error("the weights would be too far apart to keep the others' ratios; set plain weights instead")]
    TooFarApart,
}

/// For a person: no more digits than were written.
fn short(percent: f64) -> f64 {
    (percent * 1e4).round() / 1e4
}

impl Amount {
    /// A share of 0 to 100 percent.
    ///
    /// # Errors
    /// When it is none.
    pub fn percent(percent: f64) -> Result<Self, BadAmount> {
        let shown = || format!("{percent}%");
        match percent {
            p if p < 0.0 => Err(BadAmount::Negative(shown())),
            p if p > 100.0 => Err(BadAmount::Over(shown())),
            p if p.is_nan() => Err(BadAmount::Number(shown())),
            p => Ok(Self::Share(p / 100.0)),
        }
    }

    /// A plain weight.
    ///
    /// # Errors
    /// When it is none.
    pub fn weight(weight: f64) -> Result<Self, BadAmount> {
        if weight < 0.0 {
            return Err(BadAmount::Negative(weight.to_string()));
        }
        Weight::new(weight).map(Self::Weight).ok_or_else(|| BadAmount::Range(weight.to_string()))
    }
}

impl FromStr for Amount {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let number = |digits: &str| digits.trim().parse::<f64>().map_err(|_| BadAmount::Number(text.to_owned()));
        match text.trim().strip_suffix('%') {
            Some(percent) => Self::percent(number(percent)?),
            None => Self::weight(number(text)?),
        }
    }
}

/// A version before the change.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    pub name: &'a str,
    pub weight: Weight,
    /// The file's weight: the ratio it comes back with after another version had everything.
    pub configured: Weight,
}

/// The weights of all versions, in order, after `change`. All of them 0 is allowed only when `closed`.
///
/// # Errors
/// See [`ReweighError`]; nothing is half done.
pub fn reweigh(
    versions: &[Standing<'_>],
    change: &[(&str, Amount)],
    closed: bool,
) -> Result<Vec<Weight>, ReweighError> {
    let mut asked: Vec<Option<Amount>> = vec![None; versions.len()];
    for (name, amount) in change {
        let slot = versions.iter().position(|v| v.name == *name).and_then(|at| asked.get_mut(at));
        let Some(slot) = slot else {
            let known = versions.iter().map(|v| format!("`{}`", v.name)).collect::<Vec<_>>().join(", ");
            return Err(ReweighError::Unknown { name: (*name).to_owned(), known });
        };
        if slot.replace(*amount).is_some() {
            return Err(ReweighError::Twice((*name).to_owned()));
        }
    }
    let shares: Vec<Option<f64>> =
        asked.iter().map(|a| if let Some(Amount::Share(s)) = a { Some(*s) } else { None }).collect();
    match (asked.iter().flatten().count(), shares.iter().flatten().count()) {
        (0, _) => Err(ReweighError::Nothing),
        (_, 0) => {
            let number = |(v, a): (&Standing<'_>, &Option<Amount>)| match a {
                Some(Amount::Weight(w)) => *w,
                Some(Amount::Share(_)) | None => v.weight,
            };
            let weights: Vec<Weight> = versions.iter().zip(&asked).map(number).collect();
            if !closed && weights.iter().all(|w| w.is_zero()) { Err(ReweighError::AllZero) } else { Ok(weights) }
        }
        (named, percent) if named != percent => Err(ReweighError::Mixed),
        (..) => set_shares(versions, &shares),
    }
}

/// Sums of percentages that people write are off by some 1e-16.
const ROUNDING: f64 = 1e-9;

fn set_shares(versions: &[Standing<'_>], shares: &[Option<f64>]) -> Result<Vec<Weight>, ReweighError> {
    let sum: f64 = shares.iter().flatten().sum();
    if sum > 1.0 + ROUNDING {
        return Err(ReweighError::Over(sum * 100.0));
    }
    if sum > 1.0 - ROUNDING {
        // Everything is given away: what there was to share is shared anew.
        let had: f64 = versions.iter().map(|v| v.weight.value()).sum();
        let had = if had > 0.0 { had } else { 100.0 };
        return scaled(had, &vec![Weight::ZERO; versions.len()], shares, sum);
    }
    if shares.iter().all(Option::is_some) {
        return Err(ReweighError::Short(sum * 100.0));
    }
    let is_other = |at: usize| shares.get(at).is_some_and(Option::is_none);
    let others_of = |weight: &dyn Fn(&Standing<'_>) -> Weight| -> Vec<Weight> {
        versions.iter().enumerate().map(|(at, v)| if is_other(at) { weight(v) } else { Weight::ZERO }).collect()
    };
    // The present ratios; those of the file when there are none; equal ones when the file has none either.
    let others = [others_of(&|v| v.weight), others_of(&|v| v.configured)]
        .into_iter()
        .find(|o| o.iter().any(|w| !w.is_zero()))
        .unwrap_or_else(|| others_of(&|_| Weight::ONE));
    let rest: f64 = others.iter().map(|w| w.value()).sum();
    scaled(rest / (1.0 - sum), &others, shares, sum)
}

/// The others' weights as they are, and the named ones' as shares of `total`; all of them times a power of ten where
/// six decimals or the largest weight ask for it.
fn scaled(total: f64, others: &[Weight], shares: &[Option<f64>], sum: f64) -> Result<Vec<Weight>, ReweighError> {
    // Nearest first: the numbers stay as they are if they can.
    for power in [0, 1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6] {
        let attempt: Option<Vec<Weight>> = others
            .iter()
            .zip(shares)
            .map(|(other, share)| match share {
                None => other.times_ten_to(power),
                Some(share) => {
                    let exact = share / sum.max(1.0) * total * 10f64.powi(power);
                    Weight::new(exact).filter(|w| (w.value() - exact).abs() <= exact * TOLERANCE)
                }
            })
            .collect();
        if let Some(weights) = attempt {
            return Ok(weights);
        }
    }
    Err(ReweighError::TooFarApart)
}

/// How far a share may be off, of itself: far below what a million clients could show.
const TOLERANCE: f64 = 1e-3;

#[cfg(test)]
mod tests;

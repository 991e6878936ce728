use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["stable", "canary", "beta", "blue", "green"];

fn weight(value: f64) -> Weight {
    Weight::new(value).unwrap()
}

fn standing(now: &[f64], configured: &[f64]) -> Vec<Standing<'static>> {
    NAMES
        .iter()
        .zip(now.iter().zip(configured))
        .map(|(name, (w, c))| Standing { name, weight: weight(*w), configured: weight(*c) })
        .collect()
}

fn set(now: &[f64], change: &[(&str, &str)]) -> Result<Vec<f64>, ReweighError> {
    let change: Vec<(&str, Amount)> = change.iter().map(|(n, a)| (*n, a.parse().unwrap())).collect();
    let weights = reweigh(&standing(now, now), &change, false)?;
    Ok(weights.iter().map(|w| w.value()).collect())
}

#[test]
fn a_share_leaves_the_other_numbers_alone() {
    assert_eq!(set(&[90.0, 10.0], &[("canary", "20%")]), Ok(vec![90.0, 22.5]));
    assert_eq!(set(&[60.0, 10.0, 30.0], &[("canary", "10%")]), Ok(vec![60.0, 10.0, 30.0]));
}

#[test]
fn a_plain_weight_is_taken_as_it_is() {
    assert_eq!(set(&[90.0, 10.0], &[("canary", "20")]), Ok(vec![90.0, 20.0]));
    assert_eq!(set(&[90.0, 10.0], &[("canary", "20"), ("stable", "80")]), Ok(vec![80.0, 20.0]));
}

#[test]
fn all_of_it_puts_the_others_at_zero() {
    assert_eq!(set(&[90.0, 10.0], &[("canary", "100%")]), Ok(vec![0.0, 100.0]));
}

#[test]
fn none_of_it_leaves_the_others() {
    assert_eq!(set(&[90.0, 10.0], &[("canary", "0%")]), Ok(vec![90.0, 0.0]));
}

#[test]
fn the_others_come_back_with_the_configured_ratios() {
    let versions = standing(&[0.0, 100.0, 0.0], &[60.0, 10.0, 20.0]);

    let weights = reweigh(&versions, &[("canary", Amount::Share(0.5))], false).unwrap();

    assert_eq!(weights, [60.0, 80.0, 20.0].map(weight));
}

#[test]
fn without_configured_ratios_the_others_come_back_equal() {
    let versions = standing(&[0.0, 100.0, 0.0], &[0.0, 1.0, 0.0]);

    let weights = reweigh(&versions, &[("canary", Amount::Share(0.0))], false).unwrap();

    assert_eq!(weights, [1.0, 0.0, 1.0].map(weight));
}

#[test]
fn shares_of_all_versions_must_be_everything() {
    assert_eq!(set(&[9.0, 1.0], &[("canary", "30%"), ("stable", "70%")]), Ok(vec![7.0, 3.0]));
    assert!(matches!(set(&[9.0, 1.0], &[("canary", "30%"), ("stable", "60%")]), Err(ReweighError::Short(_))));
    assert!(matches!(set(&[9.0, 1.0], &[("canary", "30%"), ("stable", "80%")]), Err(ReweighError::Over(_))));
}

#[test]
fn a_share_too_fine_for_six_decimals_scales_all_weights() {
    let weights = set(&[0.0001, 0.0], &[("canary", "0.01%")]).unwrap();

    assert!((weights[1] / (weights[0] + weights[1]) - 0.0001).abs() < 1e-7);
}

#[test]
fn a_share_of_the_largest_weights_scales_all_down() {
    let weights = set(&[1e9, 1.0], &[("canary", "99%")]).unwrap();

    assert!((weights[0] - 1e7).abs() < 1e-9 && (weights[1] - 9.9e8).abs() < 1.0, "{weights:?}");
}

#[test]
fn what_cannot_be_set_says_why() {
    let message = |now: &[f64], change: &[(&str, &str)]| set(now, change).unwrap_err().to_string();

    assert_eq!(message(&[9.0, 1.0], &[]), "no version is named; write at least one, such as canary=20%");
    assert_eq!(
        message(&[9.0, 1.0], &[("canry", "1%")]),
        "there is no version `canry`; the versions are `stable`, `canary`"
    );
    assert_eq!(
        message(&[9.0, 1.0], &[("canary", "1"), ("canary", "2")]),
        "version `canary` is named twice; name it once"
    );
    assert!(message(&[9.0, 1.0], &[("canary", "1"), ("stable", "2%")]).contains("mixed"));
    assert!(message(&[9.0, 1.0], &[("canary", "0"), ("stable", "0")]).contains("all weights"));
}

#[test]
fn all_zero_closes_a_service_when_asked_to() {
    let change = [("stable", Amount::Weight(Weight::ZERO)), ("canary", Amount::Weight(Weight::ZERO))];

    assert_eq!(reweigh(&standing(&[9.0, 1.0], &[9.0, 1.0]), &change, true), Ok(vec![Weight::ZERO; 2]));
}

#[test]
fn amounts_that_are_none_say_why() {
    let message = |text: &str| text.parse::<Amount>().unwrap_err().to_string();

    assert_eq!(message("140%"), "140% is more than 100%; write a share of 0% to 100%");
    assert_eq!(message("-3"), "-3 is negative; write a number of 0 or more");
    assert_eq!(message("-3%"), "-3% is negative; write a number of 0 or more");
    assert!(message("much").starts_with("`much` is no number"));
    for text in ["NaN", "inf", "1e12", "NaN%", "", "%"] {
        assert!(text.parse::<Amount>().is_err(), "{text}");
    }
}

/// Weights people write: 0.01 to 10,000, two decimals.
fn some_weight() -> impl Strategy<Value = f64> {
    (1u32..1_000_000).prop_map(|n| f64::from(n) / 100.0)
}

proptest! {
    #[test]
    fn setting_a_share_gives_that_share_and_keeps_the_others_numbers(
        now in prop::collection::vec(some_weight(), 2..=5),
        at in 0usize..5,
        percent in (1u32..=9_999).prop_map(|n| f64::from(n) / 100.0),
    ) {
        let at = at % now.len();
        let after = reweigh(&standing(&now, &now), &[(NAMES[at], Amount::percent(percent).unwrap())], false).unwrap();

        let sum: f64 = after.iter().map(|w| w.value()).sum();
        let share = after[at].value() / sum;
        prop_assert!((share - percent / 100.0).abs() <= 2.0 * TOLERANCE * percent / 100.0, "{share}");
        // Exactly the same numbers, or all times the same power of ten.
        let factors: Vec<f64> =
            (0..now.len()).filter(|i| *i != at).map(|i| (after[i].value() / now[i]).log10()).collect();
        for factor in &factors {
            prop_assert!((factor - factors[0]).abs() < 1e-9 && (factor - factor.round()).abs() < 1e-9, "{factors:?}");
        }
    }

    #[test]
    fn setting_the_same_share_twice_changes_nothing_the_second_time(
        now in prop::collection::vec(some_weight(), 2..=5),
        percent in 1u32..=99,
    ) {
        let change = [("canary", Amount::Share(f64::from(percent) / 100.0))];
        let once = reweigh(&standing(&now, &now), &change, false).unwrap();
        let values: Vec<f64> = once.iter().map(|w| w.value()).collect();

        prop_assert_eq!(reweigh(&standing(&values, &values), &change, false).unwrap(), once);
    }
}

use std::time::Duration;

use proptest::prelude::*;

use super::verb::{RampMove, Verb, VerbError, apply};
use super::*;
use crate::decide::guard::Rules;
use crate::decide::ramp::{Plan, Step};
use crate::decide::reweigh::Amount;

const MINUTE: u64 = 60_000;

fn sides<'a>(weights: &[(&'a str, f64)]) -> Vec<Side<'a>> {
    weights.iter().map(|(name, weight)| Side { name, configured: Weight::new(*weight).unwrap(), usable: 1 }).collect()
}

fn at<'a>(sides: &'a [Side<'a>], at: u64) -> Context<'a> {
    Context { at, who: "test", reason: None, sides, rule: OnDecrease::Evict, min_ready: 1, plan: None }
}

fn weights(rollout: &Rollout) -> Vec<(&str, f64)> {
    rollout.weights.iter().map(|(n, w)| (&**n, w.value())).collect()
}

fn set(name: &str, amount: &str) -> Verb {
    let amounts = vec![(name.to_owned(), amount.parse().unwrap())];
    Verb::SetWeights { amounts, closed: false, on_decrease: None }
}

fn set_draining(name: &str, amount: &str, minutes: u64) -> Verb {
    let amounts = vec![(name.to_owned(), amount.parse().unwrap())];
    let drain = OnDecrease::Drain { deadline: Duration::from_millis(minutes * MINUTE) };
    Verb::SetWeights { amounts, closed: false, on_decrease: Some(drain) }
}

const UNDO: Verb = Verb::Undo { to_revision: None, on_decrease: None };
const PROMOTE: Verb = Verb::Promote { version: None, force: false, guarded: false, on_decrease: None };

/// Applies verbs in a row, a minute apart.
fn after(sides: &[Side<'_>], verbs: &[Verb]) -> Rollout {
    let mut rollout = Rollout::start(&at(sides, 0));
    for (minute, verb) in (1..).zip(verbs) {
        rollout = apply(&rollout, verb, &at(sides, minute * MINUTE)).unwrap_or_else(|e| panic!("{verb:?}: {e}"));
    }
    rollout
}

fn switch(version: &str, existing: OnDecrease) -> Verb {
    Verb::Switch { version: version.to_owned(), force: false, existing }
}

#[test]
fn a_service_starts_with_the_files_weights() {
    let rollout = Rollout::start(&at(&sides(&[("stable", 90.0), ("canary", 10.0)]), 5_000));

    assert_eq!(weights(&rollout), [("canary", 10.0), ("stable", 90.0)]);
    assert_eq!((rollout.revision(), rollout.history[0].verb, rollout.history[0].at), (1, Word::File, 5));
}

#[test]
fn stable_is_the_version_of_that_name_or_the_heaviest_the_first_of_equals() {
    for (versions, stable) in [
        (&[("canary", 90.0), ("stable", 10.0)][..], "stable"),
        (&[("blue", 10.0), ("green", 90.0)], "green"),
        (&[("blue", 50.0), ("green", 50.0)], "blue"),
    ] {
        assert_eq!(Rollout::start(&at(&sides(versions), 0)).stable, stable, "{versions:?}");
    }
}

#[test]
fn promote_gives_the_canary_everything_and_makes_it_stable() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);

    let promoted = after(&sides, &[PROMOTE]);

    assert_eq!(weights(&promoted), [("canary", 100.0), ("stable", 0.0)]);
    assert_eq!(promoted.stable, "canary");
    assert_eq!(
        apply(&promoted, &Verb::Abort, &at(&sides, MINUTE)).unwrap(),
        promoted,
        "there is nothing to go back to"
    );
}

#[test]
fn which_version_is_promoted_must_be_clear() {
    let three = sides(&[("stable", 80.0), ("canary", 10.0), ("beta", 10.0)]);
    assert_eq!(after(&three, &[PROMOTE]).stable, "canary");

    let unclear = sides(&[("stable", 80.0), ("red", 10.0), ("beta", 10.0)]);
    let error = apply(&after(&unclear, &[]), &PROMOTE, &at(&unclear, 0)).unwrap_err();

    assert_eq!(error.to_string(), "which version? name one of `stable`, `red`, `beta`");
}

#[test]
fn abort_evicts_and_returns_all_to_stable() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);

    let aborted = after(&sides, &[set("canary", "50%"), set_draining("canary", "20%", 10), Verb::Abort]);

    assert!(aborted.weights["canary"].is_zero() && !aborted.weights["stable"].is_zero());
    assert_eq!((aborted.drains.len(), aborted.history.last().unwrap().verb), (0, Word::Abort));
    assert!(aborted.was_aborted_since(3) && !aborted.was_aborted_since(4));
}

#[test]
fn undo_goes_back_and_is_a_revision_of_its_own() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let set = after(&sides, &[set("canary", "50"), set("canary", "70")]);

    let undone = apply(&set, &UNDO, &at(&sides, 0)).unwrap();
    let redone = apply(&undone, &UNDO, &at(&sides, 0)).unwrap();
    let first = apply(&set, &Verb::Undo { to_revision: Some(1), on_decrease: None }, &at(&sides, 0)).unwrap();

    assert_eq!((undone.weights["canary"].value(), undone.revision()), (50.0, 4));
    assert_eq!(redone.weights["canary"], Weight::new(70.0).unwrap(), "as kubectl does");
    assert_eq!(first.weights["canary"], Weight::new(10.0).unwrap());
}

#[test]
fn undo_of_a_promotion_brings_the_stable_side_back() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);

    assert_eq!(after(&sides, &[PROMOTE, UNDO]).stable, "stable");
}

#[test]
fn undo_looks_behind_revisions_with_the_same_weights() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);

    let undone = after(&sides, &[set("canary", "50"), Verb::Pause, Verb::Resume { skip: false }, UNDO]);

    assert_eq!(undone.weights["canary"], Weight::new(10.0).unwrap());
}

#[test]
fn there_may_be_nothing_to_undo_or_no_such_revision() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let start = after(&sides, &[]);
    let to = |n| apply(&start, &Verb::Undo { to_revision: Some(n), on_decrease: None }, &at(&sides, 0));

    assert_eq!(apply(&start, &UNDO, &at(&sides, 0)), Err(VerbError::NothingToUndo));
    assert_eq!(to(7), Err(VerbError::UnknownRevision { revision: 7, first: 1, last: 1 }));
    assert_eq!(to(1).unwrap(), start);
}

#[test]
fn undo_to_versions_that_are_gone_is_refused() {
    let then = sides(&[("stable", 0.0), ("old", 1.0)]);
    let now = sides(&[("stable", 1.0), ("new", 0.0)]);
    let start = Rollout::start(&at(&then, 0)).follow(&at(&now, 0), false);

    let error = apply(&start, &UNDO, &at(&now, 0)).unwrap_err();

    assert_eq!(error.to_string(), "revision 1 has weight only on versions that are gone (old); undo to another");
}

#[test]
fn while_paused_only_abort_and_resume_go() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let paused = after(&sides, &[Verb::Pause]);
    let drain = Verb::Drain { version: None, deadline: Duration::from_secs(1) };

    for verb in [set("canary", "1"), PROMOTE, UNDO, switch("canary", OnDecrease::Evict), drain] {
        let error = apply(&paused, &verb, &at(&sides, 0)).unwrap_err();
        assert_eq!(error.to_string(), "the rollout is paused by test; resume it first", "{verb:?}");
    }
    let aborted = apply(&paused, &Verb::Abort, &at(&sides, 0)).unwrap();
    assert!(aborted.paused.is_some() && aborted.weights["canary"].is_zero());
    assert!(apply(&aborted, &Verb::Resume { skip: false }, &at(&sides, 0)).unwrap().paused.is_none());
}

#[test]
fn a_verb_that_changes_nothing_makes_no_revision() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let start = after(&sides, &[]);
    let paused = after(&sides, &[Verb::Pause]);

    for verb in
        [set("canary", "10"), set("canary", "10%"), Verb::Resume { skip: false }, switch("stable", OnDecrease::Evict)]
    {
        let next = apply(&start, &verb, &at(&sides, 0)).unwrap();
        assert_eq!(next == start, !matches!(verb, Verb::Switch { .. }), "{verb:?}");
    }
    assert_eq!(apply(&paused, &Verb::Pause, &at(&sides, MINUTE)).unwrap(), paused);
}

#[test]
fn a_switch_needs_endpoints_or_force() {
    let mut sides = sides(&[("blue", 100.0), ("green", 0.0)]);
    sides[1].usable = 2;
    let cx = Context { min_ready: 3, ..at(&sides, 0) };
    let start = Rollout::start(&cx);

    let error = apply(&start, &switch("green", OnDecrease::Evict), &cx).unwrap_err();
    let forced = Verb::Switch { version: "green".into(), force: true, existing: OnDecrease::Evict };

    assert_eq!(error.to_string(), "version `green` has 2 usable endpoints and needs 3; wait for them, or use force");
    assert_eq!(weights(&apply(&start, &forced, &cx).unwrap()), [("blue", 0.0), ("green", 100.0)]);
}

#[test]
fn after_a_switch_abort_goes_back_to_the_side_that_was_live() {
    let sides = sides(&[("blue", 100.0), ("green", 0.0)]);
    let there = after(&sides, &[switch("green", OnDecrease::Evict)]);
    let back = after(&sides, &[switch("green", OnDecrease::Evict), switch("blue", OnDecrease::Evict)]);

    assert_eq!((&*there.stable, &*back.stable), ("blue", "green"));
    assert_eq!(weights(&apply(&there, &Verb::Abort, &at(&sides, 0)).unwrap()), [("blue", 100.0), ("green", 0.0)]);
}

#[test]
fn who_is_held_while_a_version_drains_is_held_longer_by_a_pause() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let draining = after(&sides, &[Verb::Drain { version: None, deadline: Duration::from_millis(10 * MINUTE) }]);
    let earlier = vec![Earlier { until_millis: MINUTE, weights: at(&sides, 0).file() }];
    assert_eq!(draining.drains, [Drain { version: "canary".into(), until_millis: Some(11 * MINUTE), earlier }]);

    let paused = apply(&draining, &Verb::Pause, &at(&sides, 2 * MINUTE)).unwrap();
    let resumed = apply(&paused, &Verb::Resume { skip: false }, &at(&sides, 7 * MINUTE)).unwrap();

    assert_eq!(resumed.drains[0].until_millis, Some(16 * MINUTE));
}

#[test]
fn the_files_weights_win_once_they_change() {
    let (before, now) = (sides(&[("stable", 90.0), ("canary", 10.0)]), sides(&[("stable", 80.0), ("canary", 20.0)]));
    let set = after(&before, &[set("canary", "50%")]);

    assert_eq!(set.follow(&at(&before, 0), false), set);
    let followed = set.follow(&at(&now, 0), false);

    assert_eq!(weights(&followed), [("canary", 20.0), ("stable", 80.0)]);
    assert_eq!(followed.history.last().unwrap().verb, Word::File);
}

#[test]
fn paused_the_files_weights_wait_for_resume() {
    let (before, now) = (sides(&[("stable", 90.0), ("canary", 10.0)]), sides(&[("stable", 80.0), ("canary", 20.0)]));
    let paused = after(&before, &[set("canary", "50%"), Verb::Pause]);

    let followed = paused.follow(&at(&now, 0), false);
    assert_eq!(followed, paused);
    assert!(followed.waiting(&at(&now, 0).file()));
    let resumed = apply(&followed, &Verb::Resume { skip: false }, &at(&now, 0)).unwrap();

    assert_eq!(weights(&resumed), [("canary", 20.0), ("stable", 80.0)]);
    assert!(!resumed.waiting(&at(&now, 0).file()));
}

#[test]
fn versions_that_came_while_paused_get_nobody_unless_nobody_is_left() {
    let paused = after(&sides(&[("a", 1.0), ("b", 1.0)]), &[Verb::Pause]);
    let file = |names: &'static [&'static str]| names.iter().map(|n| (*n, Weight::ONE));

    assert_eq!(paused.weights_of(file(&["a", "c"])), [Weight::ONE, Weight::ZERO]);
    assert_eq!(paused.weights_of(file(&["c", "d"])), [Weight::ONE, Weight::ONE]);
}

fn plan() -> Plan {
    let step = |share| Step { share, hold: Duration::from_secs(60) };
    Plan { steps: vec![step(0.1), step(0.5), step(1.0)], guard: Rules::default(), min_ready: 1, settle: Duration::ZERO }
}

fn guarded(version: Option<&str>) -> Verb {
    Verb::Promote { version: version.map(str::to_owned), force: false, guarded: true, on_decrease: None }
}

/// Of a ramp that has begun.
fn ramping<'a>(sides: &'a [Side<'a>], plan: &'a Plan) -> (Rollout, Context<'a>) {
    let cx = Context { plan: Some(plan), ..at(sides, 0) };
    (apply(&Rollout::start(&cx), &guarded(None), &cx).unwrap(), cx)
}

fn step(from: &Rollout, seconds: u64, share: Option<f64>, word: Word) -> Verb {
    let expected = from.ramp.clone().unwrap();
    let state = RampState { elapsed: Duration::from_secs(seconds), ..expected.clone() };
    let amounts = share.map(|share| ("canary".to_owned(), Amount::Share(share))).into_iter().collect();
    Verb::Ramp(Box::new(RampMove { expected, state, amounts, word }))
}

#[test]
fn a_ramp_moves_its_state_and_the_weights_in_one_revision() {
    let (sides, plan) = (sides(&[("stable", 90.0), ("canary", 0.0)]), plan());
    let (begun, cx) = ramping(&sides, &plan);
    let elapsed = |rollout: &Rollout| rollout.ramp.as_ref().unwrap().elapsed.as_secs();

    let noted = apply(&begun, &step(&begun, 2, None, Word::Ramp), &cx).unwrap();
    let paused = apply(&noted, &Verb::Pause, &cx).unwrap();
    let refused = apply(&paused, &step(&noted, 3, Some(0.2), Word::Ramp), &cx);
    let aborted = apply(&paused, &step(&noted, 4, None, Word::Abort), &cx).unwrap();
    let done = apply(&noted, &step(&noted, 5, Some(1.0), Word::Promote), &cx).unwrap();

    assert_eq!((begun.revision(), elapsed(&begun), begun.weights["canary"].value()), (2, 0, 10.0));
    assert_eq!((noted.revision(), elapsed(&noted)), (2, 2));
    assert!(matches!(refused, Err(VerbError::Paused { .. })));
    assert_eq!((weights(&aborted)[0], elapsed(&aborted)), (("canary", 0.0), 4));
    assert_eq!((&*done.stable, weights(&done)[1]), ("canary", ("stable", 0.0)));
}

#[test]
fn what_a_person_does_ends_a_ramp_and_refuses_its_next_move() {
    let (sides, plan) = (sides(&[("stable", 90.0), ("canary", 0.0)]), plan());
    let (begun, cx) = ramping(&sides, &plan);

    for verb in [set("canary", "30%"), Verb::Abort, UNDO, PROMOTE] {
        let by_hand = apply(&begun, &verb, &cx).unwrap();

        let ramp = by_hand.ramp.as_ref().unwrap();
        assert_eq!(ramp.why, format!("ended by {} (test)", verb.word().as_str()));
        assert!(!by_hand.has_ramp());
        let late = apply(&by_hand, &step(&begun, 9, Some(0.5), Word::Ramp), &cx);
        assert_eq!(late, Err(VerbError::RampChanged), "{verb:?}");
        assert_eq!(apply(&by_hand, &Verb::Resume { skip: true }, &cx), Err(VerbError::NoRamp));
    }
}

#[test]
fn a_ramp_needs_steps_endpoints_and_another_side() {
    let plan = plan();
    let there = sides(&[("stable", 90.0), ("canary", 0.0)]);
    let mut empty = there.clone();
    empty[1].usable = 0;
    let (begun, cx) = ramping(&there, &plan);
    let start = Rollout::start(&cx);

    assert_eq!(apply(&start, &guarded(None), &at(&there, 0)), Err(VerbError::NoSteps));
    assert!(matches!(apply(&start, &guarded(None), &Context { sides: &empty, ..cx }), Err(VerbError::Empty { .. })));
    assert!(matches!(apply(&start, &guarded(Some("stable")), &cx), Err(VerbError::IsStable { .. })));
    assert!(matches!(apply(&begun, &guarded(None), &cx), Err(VerbError::RampUnderWay { step: 1, steps: 3, .. })));
}

#[test]
fn a_skip_is_a_revision_of_its_own() {
    let (sides, plan) = (sides(&[("stable", 90.0), ("canary", 0.0)]), plan());
    let (begun, cx) = ramping(&sides, &plan);
    let paused = apply(&begun, &Verb::Pause, &cx).unwrap();

    for (before, skipped) in [&begun, &paused].map(|b| (b, apply(b, &Verb::Resume { skip: true }, &cx).unwrap())) {
        assert!(skipped.ramp.as_ref().unwrap().skips && skipped.paused.is_none());
        assert_eq!(skipped.revision(), before.revision() + 1);
    }
}

#[test]
fn what_the_configuration_started_stays_known() {
    let (sides, plan) = (sides(&[("stable", 90.0), ("canary", 0.0)]), plan());
    let cx = Context { plan: Some(&plan), ..at(&sides, 0) };
    let start = Verb::Start { version: "canary".into(), id: "canary@7".into() };

    let begun = apply(&Rollout::start(&cx), &start, &cx).unwrap();
    let aborted = apply(&begun, &Verb::Abort, &cx).unwrap();
    let again = apply(&aborted, &guarded(None), &cx).unwrap();

    for rollout in [begun, aborted, again] {
        assert_eq!(rollout.ramp.unwrap().start.as_deref(), Some("canary@7"));
    }
}

#[test]
fn the_document_survives_its_way_through_json() {
    let sides = sides(&[("stable", 90.5), ("canary", 0.000_001)]);
    let verbs = [set_draining("canary", "0", 1), Verb::Pause, Verb::Resume { skip: false }, PROMOTE, UNDO];
    let rollouts = Rollouts::default().with("hello", after(&sides, &verbs));

    let text = serde_json::to_string(&rollouts).unwrap();

    assert_eq!(serde_json::from_str::<Rollouts>(&text).unwrap(), rollouts, "{text}");
    for broken in ["-1", "1e300", "\"1\"", "null"] {
        assert!(serde_json::from_str::<Rollouts>(&text.replace("90.5", broken)).is_err(), "{broken}");
    }
}

#[test]
fn the_history_is_bounded() {
    let sides = sides(&[("stable", 90.0), ("canary", 10.0)]);
    let verbs: Vec<Verb> = (0..120).map(|n| set("canary", &(20 + n).to_string())).collect();

    let rollout = after(&sides, &verbs);

    assert_eq!((rollout.history.len(), rollout.revision(), rollout.history[0].revision), (HISTORY, 121, 72));
}

fn any_verb() -> impl Strategy<Value = Verb> {
    let version = prop::sample::select(vec!["stable", "canary", "beta", "gone"]);
    let rule = prop_oneof![
        Just(OnDecrease::Evict),
        Just(OnDecrease::Freeze),
        (1u64..20).prop_map(|m| OnDecrease::Drain { deadline: Duration::from_millis(m * MINUTE) }),
    ];
    let named = prop::option::of(version.clone().prop_map(str::to_owned));
    prop_oneof![
        Just(Verb::Abort),
        Just(Verb::Pause),
        Just(Verb::Resume { skip: false }),
        (named.clone(), 0u64..100).prop_map(|(version, s)| Verb::Drain { version, deadline: Duration::from_secs(s) }),
        (named, any::<bool>()).prop_map(|(version, force)| Verb::Promote {
            version,
            force,
            guarded: false,
            on_decrease: None
        }),
        (version.clone(), 0u32..120, prop::option::of(rule.clone())).prop_map(|(version, percent, on_decrease)| {
            let amount = Amount::percent(f64::from(percent.min(100))).unwrap();
            Verb::SetWeights { amounts: vec![(version.to_owned(), amount)], closed: false, on_decrease }
        }),
        (version, any::<bool>(), rule).prop_map(|(v, force, existing)| Verb::Switch {
            version: v.to_owned(),
            force,
            existing
        }),
        prop::option::of(0u64..30).prop_map(|to_revision| Verb::Undo { to_revision, on_decrease: None }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_done_somebody_serves_and_the_history_is_true(verbs in prop::collection::vec(any_verb(), 1..40)) {
        let sides = sides(&[("stable", 80.0), ("canary", 15.0), ("beta", 5.0)]);
        let mut rollout = Rollout::start(&at(&sides, 0));
        for (minute, verb) in (1..).zip(&verbs) {
            let cx = at(&sides, minute * MINUTE);
            let Ok(next) = apply(&rollout, verb, &cx) else { continue };
            let was_paused = rollout.paused.is_some();
            prop_assert!(next.weights.values().any(|w| !w.is_zero()));
            prop_assert_eq!(next.weights.len(), 3);
            prop_assert!(next.weights.contains_key(&next.stable));
            prop_assert_eq!(&next.history.last().unwrap().weights, &next.weights);
            prop_assert!(next.revision() == rollout.revision() + u64::from(next != rollout), "{:?}", verb);
            prop_assert!(next.history.iter().zip(next.history.iter().skip(1)).all(|(a, b)| a.revision + 1 == b.revision));
            prop_assert!(next.drains.iter().all(|d| next.weights.contains_key(&d.version)));
            if was_paused && !matches!(verb, Verb::Abort | Verb::Resume { .. }) {
                prop_assert_eq!(&next, &rollout);
            }
            if matches!(verb, Verb::Abort) {
                prop_assert!(next.drains.is_empty() && !next.weights[&next.stable].is_zero());
                prop_assert_eq!(next.weights.values().filter(|w| !w.is_zero()).count(), 1);
            }
            rollout = next;
        }
    }

    #[test]
    fn undo_to_a_revision_gives_its_weights(verbs in prop::collection::vec(any_verb(), 1..20), pick in any::<prop::sample::Index>()) {
        let sides = sides(&[("stable", 80.0), ("canary", 15.0), ("beta", 5.0)]);
        let mut rollout = Rollout::start(&at(&sides, 0));
        for verb in &verbs {
            rollout = apply(&rollout, verb, &at(&sides, 0)).unwrap_or(rollout);
        }
        rollout = apply(&rollout, &Verb::Resume { skip: false }, &at(&sides, 0)).unwrap();
        let wanted = pick.get(&rollout.history).clone();

        let undone = apply(&rollout, &Verb::Undo { to_revision: Some(wanted.revision), on_decrease: None }, &at(&sides, 0)).unwrap();

        prop_assert_eq!(&undone.weights, &wanted.weights);
        prop_assert_eq!(&undone.stable, &wanted.stable);
    }
}

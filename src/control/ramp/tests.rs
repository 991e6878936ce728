//! The runner on a writer without a store, in time that the test moves.

use super::*;
use crate::config::{self, Config};
use crate::control::Writer;
use crate::decide::guard::Rules;
use crate::decide::ramp::{Phase, Step};
use crate::state::fixtures::{config, hello};
use crate::state::pins::Pins;

fn ramped(hold: u64) -> Config {
    let mut service = hello(100.0, 0.0);
    let step = |share, hold| Step { share, hold: Duration::from_secs(hold) };
    let guard = Rules { min_requests: 10, ..Rules::default() };
    let steps = vec![step(0.1, hold), step(1.0, 0)];
    service.rollout = config::Rollout { steps, guard, ..config::Rollout::default() };
    config(vec![service])
}

/// A ramp has begun; the runner leads as the sender says.
async fn begun(hold: u64, leads: bool) -> (Control, watch::Sender<bool>) {
    let (clock, pins) = (Clock::start(), Arc::new(Pins::new(100)));
    let (writer, control) = Writer::start(ramped(hold), clock, pins).await.unwrap();
    tokio::spawn(writer.run());
    let (lead, follow) = watch::channel(leads);
    tokio::spawn(run(control.clone(), clock, follow));
    let verb = Verb::Promote { version: None, force: false, guarded: true, on_decrease: None };
    control.change(Change::new("hello", verb, "test"), false).await.unwrap();
    (control, lead)
}

fn rollout(control: &Control) -> Rollout {
    Rollout::clone(&control.snapshot().rollouts.services["hello"])
}

fn ramp(control: &Control) -> RampState {
    rollout(control).ramp.unwrap()
}

/// So many seconds in which both sides serve; the canary fails every so many.
async fn serve(control: &Control, seconds: u32, fails_every: Option<usize>) {
    for _ in 0..seconds {
        let snapshot = control.snapshot();
        for n in 0..20 {
            for version in &snapshot.services[0].versions {
                let has_failed = &*version.name == "canary" && fails_every.is_some_and(|every| n % every == 0);
                version.metrics.outcome(Duration::from_millis(5), has_failed);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_canary_becomes_the_stable_side() {
    let (control, _lead) = begun(10, true).await;

    serve(&control, 15, None).await;

    let rollout = rollout(&control);
    assert_eq!((rollout.stable.as_str(), rollout.ramp.unwrap().phase), ("canary", Phase::Done));
    assert!((control.snapshot().services[0].policy.split.share(1) - 1.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_failing_canary_is_aborted_and_counted() {
    let (control, _lead) = begun(600, true).await;

    serve(&control, 10, Some(2)).await;

    let ramp = ramp(&control);
    assert_eq!(ramp.phase, Phase::Aborted);
    assert!(ramp.why.starts_with("canary failed "), "{}", ramp.why);
    assert!(control.snapshot().services[0].policy.split.share(1).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn how_far_it_is_is_noted_without_a_revision() {
    let (control, _lead) = begun(600, true).await;
    let before = rollout(&control).revision();

    serve(&control, 20, None).await;

    let ramp = ramp(&control);
    assert!(ramp.elapsed >= Duration::from_secs(10), "{:?}", ramp.elapsed);
    assert!(ramp.guard.counts().1.requests >= 200);
    assert_eq!(rollout(&control).revision(), before);
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_moves_it() {
    let (control, lead) = begun(10, false).await;

    serve(&control, 30, None).await;
    let waited = ramp(&control);
    lead.send_replace(true);
    serve(&control, 15, None).await;

    assert_eq!((waited.phase, waited.elapsed), (Phase::Running, Duration::ZERO));
    assert_eq!(ramp(&control).phase, Phase::Done);
}

#[tokio::test(start_paused = true)]
async fn a_ramp_whose_canary_left_the_configuration_ends() {
    let (control, _lead) = begun(600, true).await;
    serve(&control, 3, None).await;
    let mut without = ramped(600);
    without.services[0].versions[1].name = "next".into();
    // The same weights under another name are other weights, which win and end it.
    control.configure(without).await.unwrap();

    serve(&control, 3, None).await;

    assert_eq!(ramp(&control).phase, Phase::Aborted);
    assert_eq!(ramp(&control).why, "ended by file (configuration)");
}

#[tokio::test(start_paused = true)]
async fn a_skip_comes_with_the_next_look_and_keeps_the_evidence() {
    let (control, _lead) = begun(600, true).await;
    serve(&control, 3, None).await;

    control.change(Change::new("hello", Verb::Resume { skip: true }, "test"), false).await.unwrap();
    serve(&control, 2, None).await;

    assert_eq!(ramp(&control).phase, Phase::Done);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_shows_its_last_numbers() {
    let (control, _lead) = begun(600, true).await;

    serve(&control, 10, Some(2)).await;

    let noted = ramp(&control);
    assert_eq!(noted.phase, Phase::Aborted);
    let shown = control.ramps().show("hello", &noted);
    assert!(shown.report.p99.canary.is_some(), "{shown:?}");
    assert_eq!(control.ramps().show("hello", &noted.ended("again")).state, noted);
}

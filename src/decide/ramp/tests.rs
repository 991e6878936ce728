use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn plan(steps: &[(f64, u64)]) -> Plan {
    Plan {
        steps: steps.iter().map(|(share, hold)| Step { share: *share, hold: Duration::from_secs(*hold) }).collect(),
        guard: Rules { min_requests: 100, ..Rules::default() },
        min_ready: 1,
        settle: Duration::from_secs(10),
    }
}

fn begin() -> RampState {
    RampState::begin(plan(&[(0.01, 10), (0.25, 10), (1.0, 0)]), "canary", "stable", 0.0, None).0
}

/// All at 20 ms.
fn outcomes(requests: u64, failures: u64) -> Outcomes {
    let mut outcomes = Outcomes::default();
    (0..requests).for_each(|n| outcomes.record(Duration::from_millis(20), n < failures));
    outcomes
}

struct Runner {
    state: RampState,
    window: Window,
}

impl Runner {
    fn new(state: RampState) -> Self {
        Self { state, window: Window::default() }
    }

    /// A second with so many requests a side; the canary's failures.
    fn second(&mut self, requests: u64, failures: u64) -> Move {
        self.look(requests, failures, |_| {})
    }

    fn look(&mut self, requests: u64, failures: u64, but: impl Fn(&mut Look<'_>)) -> Move {
        let (stable, canary) = (outcomes(requests, 0), outcomes(requests, failures));
        let unchanged = Duration::from_secs(3600);
        let mut look =
            Look { passed: SECOND, stable: &stable, canary: &canary, unchanged, usable: 1, is_paused: false };
        but(&mut look);
        self.state.look(&mut self.window, &look)
    }
}

#[test]
fn a_good_canary_goes_from_step_to_step_to_the_end() {
    let mut runner = Runner::new(begin());

    let moves: Vec<Move> = (0..25).map(|_| runner.second(50, 0)).filter(|m| *m != Move::Stay).collect();

    assert_eq!(moves, [Move::Step(0.25), Move::Finish]);
    assert_eq!((runner.state.phase, runner.state.step), (Phase::Done, 2));
    assert_eq!(runner.second(50, 50), Move::Stay);
}

#[test]
fn nobody_is_taken_away_from_the_canary_at_the_beginning() {
    let steps = plan(&[(0.01, 10), (0.25, 10), (0.5, 10), (1.0, 0)]);

    for (share, step, first) in
        [(0.0, 0, Some(0.01)), (0.01, 0, None), (0.1, 0, None), (0.25, 1, None), (0.6, 2, None), (1.0, 3, None)]
    {
        let (state, sets) = RampState::begin(steps.clone(), "canary", "stable", share, None);

        assert_eq!((state.step, sets), (step, first), "{share}");
    }
}

#[test]
fn too_few_requests_hold_the_step() {
    let mut runner = Runner::new(begin());

    (0..50).for_each(|_| assert_eq!(runner.second(1, 0), Move::Stay));

    assert_eq!(runner.state.phase, Phase::Holding);
    assert_eq!(runner.state.why, "too few requests: canary 50, stable 50 of 100");
    let moves: Vec<Move> = (0..51).map(|_| runner.second(1, 0)).filter(|m| *m != Move::Stay).collect();
    assert_eq!(moves, [Move::Step(0.25)]);
}

#[test]
fn a_canary_that_fails_is_aborted_with_the_numbers() {
    let mut runner = Runner::new(begin());
    runner.second(50, 0);

    let moves: Vec<Move> = (0..5).map(|_| runner.second(50, 10)).filter(|m| *m != Move::Stay).collect();

    assert_eq!(moves, [Move::Abort]);
    assert_eq!(runner.state.phase, Phase::Aborted);
    let why = &runner.state.why;
    assert!(why.starts_with("canary failed 20 of 150 requests (13.33%), stable 0 of 150 (0.00%)"), "{why}");
}

#[test]
fn what_may_be_wrong_holds_until_it_is_clear() {
    let mut runner = Runner::new(begin());
    (0..9).for_each(|_| assert_eq!(runner.second(50, 0), Move::Stay));
    runner.second(50, 8);
    assert!(matches!(runner.state.guard.verdict(&runner.state.plan.guard, true), Verdict::Suspect(_)));
    assert_eq!(runner.second(50, 0), Move::Stay);
    assert_eq!(runner.state.phase, Phase::Holding);
    assert!(runner.state.why.starts_with("inconclusive: canary failed 8 of 550 requests"), "{}", runner.state.why);
    // Both sides fail alike: it was chance.
    let (stable, canary) = (outcomes(500, 25), outcomes(500, 20));

    let look = Look {
        passed: SECOND,
        stable: &stable,
        canary: &canary,
        unchanged: Duration::from_secs(3600),
        usable: 1,
        is_paused: false,
    };
    let moves: Vec<Move> = (0..20).map(|_| runner.state.look(&mut runner.window, &look)).collect();

    assert!(moves.contains(&Move::Step(0.25)), "{moves:?}");
}

#[test]
fn changing_endpoints_make_it_wait_and_count_nothing() {
    let mut runner = Runner::new(begin());
    (0..5).for_each(|_| assert_eq!(runner.second(50, 0), Move::Stay));

    (0..60).for_each(|_| assert_eq!(runner.look(50, 25, |look| look.unchanged = SECOND), Move::Stay));

    assert_eq!((runner.state.phase, runner.state.elapsed), (Phase::Waiting, 5 * SECOND));
    assert_eq!(runner.state.guard.counts().1.requests, 250);
    (0..4).for_each(|_| assert_eq!(runner.second(50, 0), Move::Stay));
    assert_eq!(runner.second(50, 0), Move::Step(0.25));
}

#[test]
fn a_ceiling_holds_while_endpoints_change() {
    let mut state = begin();
    state.plan.guard.max_error_ratio = Some(0.1);
    let mut runner = Runner::new(state);

    let moves: Vec<Move> = (0..10).map(|_| runner.look(50, 25, |look| look.unchanged = SECOND)).collect();

    assert!(moves.contains(&Move::Abort));
    assert!(runner.state.why.contains("more than maxErrorRatio 10.00%"), "{}", runner.state.why);
}

#[test]
fn without_usable_endpoints_it_waits() {
    let mut runner = Runner::new(begin());

    assert_eq!(runner.look(50, 0, |look| look.usable = 0), Move::Stay);

    assert_eq!(runner.state.phase, Phase::Waiting);
    assert_eq!(runner.state.why, "`canary` has 0 usable endpoints and needs 1");
}

#[test]
fn while_paused_nothing_is_done_and_no_time_passes() {
    let mut runner = Runner::new(begin());
    runner.second(50, 0);

    (0..60).for_each(|_| assert_eq!(runner.look(50, 40, |look| look.is_paused = true), Move::Stay));

    assert_eq!((runner.state.phase, runner.state.elapsed), (Phase::Running, SECOND));
    assert_eq!(runner.second(50, 0), Move::Abort);
}

#[test]
fn a_person_can_skip_what_holds() {
    let mut runner = Runner::new(begin());
    (0..30).for_each(|_| assert_eq!(runner.second(0, 0), Move::Stay));

    runner.state = runner.state.skipping();

    assert_eq!(runner.second(0, 0), Move::Step(0.25));
    assert_eq!(runner.second(0, 0), Move::Stay);
}

#[test]
fn a_ramp_that_somebody_ended_stays_ended() {
    let mut runner = Runner::new(begin().ended("set-weight by ann"));

    assert_eq!(runner.second(50, 50), Move::Stay);
    assert_eq!((runner.state.phase, runner.state.why.as_str()), (Phase::Aborted, "set-weight by ann"));
    assert_eq!(runner.state.ended("again").why, "set-weight by ann");
}

#[test]
fn a_restart_goes_on_with_the_step_its_time_and_its_evidence() {
    let mut runner = Runner::new(begin());
    (0..5).for_each(|_| assert_eq!(runner.second(50, 0), Move::Stay));
    runner.second(50, 4);
    let worst = |r: &Runner| r.state.guard.worst(&r.state.plan.guard).unwrap();
    let before = worst(&runner);

    let kept = serde_json::to_string(&runner.state).unwrap();
    let mut runner = Runner::new(serde_json::from_str(&kept).unwrap());

    assert_eq!((runner.state.step, runner.state.elapsed, worst(&runner)), (0, 6 * SECOND, before));
    assert_eq!(runner.second(50, 8), Move::Abort);
}

#[test]
fn with_everything_on_the_canary_only_the_ceilings_count() {
    let mut state = RampState::begin(plan(&[(0.5, 1), (1.0, 5)]), "canary", "stable", 0.0, None).0;
    state.plan.guard.max_error_ratio = Some(0.1);
    for (failures, end) in [(2, Move::Finish), (25, Move::Abort)] {
        let mut runner = Runner::new(state.clone());
        let mut moves: Vec<Move> = vec![runner.second(100, 0)];

        moves.extend((0..10).map(|_| runner.look(50, failures, |_| {})));

        moves.retain(|m| *m != Move::Stay);
        assert_eq!(moves, [Move::Step(1.0), end]);
    }
}

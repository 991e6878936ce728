use crate::config::{OnDecrease, Service};
use crate::decide::Hold;
use crate::decide::reweigh::Amount;
use crate::state::fixtures::{auth, config, hello, service};

use super::*;

async fn start(services: Vec<Service>) -> (Control, Arc<Pins>) {
    let pins = Arc::new(Pins::new(100));
    let (writer, control) = Writer::start(config(services), Clock::start(), pins.clone()).await.unwrap();
    tokio::spawn(writer.run());
    (control, pins)
}

fn canary(amount: &str, expected: Option<u64>) -> Change {
    let amounts = vec![("canary".to_owned(), amount.parse().unwrap())];
    Change { expected, ..Change::weights("hello", amounts, "test") }
}

async fn set(control: &Control, change: Change) -> Result<Arc<Snapshot>, ControlError> {
    control.change(change, false).await.map(|done| done.snapshot)
}

fn name() -> HostPort {
    ("hello.invalid".to_owned(), 80)
}

fn named() -> Service {
    service("hello", &[("stable", 1.0, &["hello.invalid:80"])])
}

fn addresses(snapshot: &Snapshot) -> Vec<String> {
    snapshot.services[0].versions[0].endpoints.iter().map(|e| e.address.to_string()).collect()
}

async fn generation(control: &Control, at_least: u64) -> Arc<Snapshot> {
    let mut generations = control.generations();
    let wait = generations.wait_for(|g| *g >= at_least);
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the generation comes").unwrap();
    control.snapshot()
}

#[tokio::test]
async fn weights_are_published_when_the_answer_comes() {
    let (control, _) = start(vec![hello(90.0, 10.0)]).await;

    let answer = set(&control, canary("20%", None)).await.unwrap();

    assert_eq!(answer.generation, 2);
    assert!(Arc::ptr_eq(&answer, &control.snapshot()));
    assert!((answer.services[0].policy.split.share(1) - 0.2).abs() < 1e-9);
}

#[tokio::test]
async fn of_two_writers_that_looked_at_one_split_one_wins() {
    let (control, _) = start(vec![hello(90.0, 10.0)]).await;

    let (one, other) = tokio::join!(set(&control, canary("20%", Some(1))), set(&control, canary("30%", Some(1))),);

    assert!(one.is_ok());
    let Err(ControlError::Change(ChangeError::Conflict { current, .. })) = other else { panic!("{other:?}") };
    assert_eq!((current, control.snapshot().generation), (2, 2));
}

#[tokio::test]
async fn a_refused_change_publishes_nothing() {
    let (control, _) = start(vec![hello(90.0, 10.0)]).await;

    let error = set(&control, canary("-0", None)).await;
    assert!(error.is_ok(), "minus zero is zero");
    let change = Change { service: "nobody".into(), ..canary("1", None) };
    set(&control, change).await.unwrap_err();

    assert_eq!(control.snapshot().generation, 2);
}

#[tokio::test]
async fn a_configuration_is_published_when_the_answer_comes() {
    let (control, _) = start(vec![hello(90.0, 10.0)]).await;

    let answer = control.configure(config(vec![hello(90.0, 10.0), auth()])).await.unwrap();

    assert_eq!((answer.generation, answer.services.len()), (2, 2));
}

#[tokio::test]
async fn names_of_a_new_configuration_are_resolved_before_it_is_published() {
    let (control, _) = start(vec![auth()]).await;

    let local = service("hello", &[("v", 1.0, &["localhost:80"])]);
    let answer = control.configure(config(vec![local])).await.unwrap();

    assert!(!addresses(&answer).is_empty());
}

#[tokio::test]
async fn a_burst_of_resolutions_is_one_generation() {
    let (control, _) = start(vec![named()]).await;

    for n in 1..=100 {
        control.resolved(name(), vec![([10, 0, 0, n], 80).into()]).await.unwrap();
    }

    let snapshot = generation(&control, 2).await;
    assert_eq!((snapshot.generation, addresses(&snapshot)), (2, vec!["10.0.0.100:80".to_owned()]));
}

#[tokio::test]
async fn endless_changes_are_published_all_the_same() {
    let (control, _) = start(vec![named()]).await;
    let source = control.clone();
    let changes = tokio::spawn(async move {
        for n in 0u32.. {
            source.resolved(name(), vec![(n.to_be_bytes(), 80).into()]).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    });

    generation(&control, 4).await;

    changes.abort();
}

#[tokio::test]
async fn an_endpoint_that_left_is_gone_after_a_moment_and_not_before() {
    let (control, _) = start(vec![auth()]).await;
    let endpoint = control.snapshot().services[0].versions[0].endpoints[0].clone();

    control.configure(config(vec![hello(1.0, 1.0)])).await.unwrap();

    assert!(!endpoint.health.is_gone(), "whoever decides on the old snapshot may still use it");
    let start = Instant::now();
    while !endpoint.health.is_gone() {
        assert!(start.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_another_version_has_now_is_not_gone_at_once() {
    let (control, _) = start(vec![service("hello", &[("v1", 1.0, &["10.0.0.1:80"])])]).await;
    let endpoint = control.snapshot().services[0].versions[0].endpoints[0].clone();

    let after = control.configure(config(vec![service("hello", &[("v2", 1.0, &["10.0.0.1:80"])])])).await.unwrap();

    assert_ne!(after.services[0].versions[0].endpoints[0].id, endpoint.id);
    assert!(!endpoint.health.is_gone(), "whoever decides on the old snapshot may still use it");
}

#[tokio::test]
async fn a_drain_ends_by_itself() {
    let rule = OnDecrease::Drain { deadline: Duration::from_millis(100) };
    let (control, _) = start(vec![Service { on_decrease: rule, ..hello(90.0, 10.0) }]).await;

    let during = set(&control, canary("5%", None)).await.unwrap();
    let after = generation(&control, 3).await;

    assert!(matches!(during.services[0].policy.holds[..], [Hold::None, Hold::Until(_)]));
    assert_eq!(after.services[0].policy.holds, [Hold::None, Hold::None]);
    assert!(after.services[0].epoch > during.services[0].epoch);
}

#[tokio::test]
async fn a_service_that_left_is_forgotten_by_the_pins() {
    let (control, pins) = start(vec![hello(90.0, 10.0)]).await;
    let service = control.snapshot().services[0].clone();
    let key = crate::decide::ClientKey::from_bytes([1; 16]);
    let pin = crate::state::pins::Pin {
        version: service.versions[0].id,
        home: None,
        endpoint: service.versions[0].endpoints[0].clone(),
        epoch: 1,
        why: crate::decide::Why::Cohort,
    };
    pins.keep(service.id, key, pin, 0);

    control.configure(config(vec![auth()])).await.unwrap();
    pins.sweep(0);

    assert!(pins.is_empty());
}

#[tokio::test]
async fn who_asks_a_stopped_writer_is_told() {
    let pins = Arc::new(Pins::new(100));
    let (writer, control) = Writer::start(config(vec![auth()]), Clock::start(), pins).await.unwrap();
    drop(writer);

    let amounts = vec![("stable".into(), Amount::Share(1.0))];
    let change = Change::weights("auth", amounts, "test");

    assert!(matches!(set(&control, change).await, Err(ControlError::Stopped)));
    assert!(control.is_stopped());
}

#[tokio::test(start_paused = true)]
async fn what_comes_alone_is_published_after_it_settled() {
    let (control, _) = start(vec![named()]).await;
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();

    control.resolved(name(), vec![([10, 0, 0, 1], 80).into()]).await.unwrap();
    generation(&control, 2).await;

    // The timer's grain.
    assert!(began.elapsed() <= SETTLE + Duration::from_millis(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn under_a_storm_each_change_is_published_within_the_pace_and_never_faster() {
    let (control, _) = start(vec![named()]).await;
    let mut generations = control.generations();
    generations.mark_unchanged();
    let mut published = Vec::new();
    let mut longest = Duration::ZERO;
    let mut waiting: Option<Instant> = None;

    for n in 0u32..2_000 {
        control.resolved(name(), vec![(n.to_be_bytes(), 80).into()]).await.unwrap();
        waiting.get_or_insert_with(Instant::now);
        sleep(Duration::from_millis(1)).await;
        if generations.has_changed().unwrap() {
            generations.borrow_and_update();
            published.push(Instant::now());
            longest = longest.max(waiting.take().unwrap().elapsed());
        }
    }

    // The grain of the timer and of this loop.
    assert!(longest <= PACE + Duration::from_millis(3), "{longest:?}");
    assert!(published.windows(2).all(|w| w[1] - w[0] >= PACE - Duration::from_millis(1)), "{published:?}");
    assert!((19..=21).contains(&published.len()), "{}", published.len());
}

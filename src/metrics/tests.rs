use super::*;

fn value(line: &str) -> Option<f64> {
    handle().render().lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_request_is_counted_by_method_and_exact_status() {
    let version = VersionMetrics::new("counting", "stable");

    version.request("GET", 200, 0.003);
    version.request("GET", 204, 0.003);
    version.request("BREW", 418, 0.003);
    version.request("GET", 65_535, 0.003);

    for (method, code) in [("GET", 200), ("GET", 204), ("other", 418), ("GET", 999)] {
        let line = format!(
            "perch_requests_total{{service=\"counting\",version=\"stable\",method=\"{method}\",code=\"{code}\"}}"
        );
        assert_eq!(value(&line), Some(1.0), "{line}");
    }
    let bucket = "perch_request_duration_seconds_bucket{service=\"counting\",version=\"stable\",le=\"0.005\"}";
    assert_eq!(value(bucket), Some(4.0));
    assert_eq!(version.recent_requests(), 4);
}

#[test]
fn the_window_forgets_after_a_minute() {
    let recent = Recent::default();
    recent.total.fetch_add(5, Ordering::Relaxed);

    recent.tick();
    recent.total.fetch_add(2, Ordering::Relaxed);
    (1..TICKS).for_each(|_| recent.tick());
    assert_eq!(recent.count(), 2);
    recent.tick();

    assert_eq!(recent.count(), 0);
}

#[test]
fn a_connection_is_open_until_its_guard_goes() {
    let listener = ListenerMetrics::new("guarded");

    let first = listener.opened();
    let second = listener.opened();
    drop(first);

    assert_eq!(value("perch_connections{listener=\"guarded\"}"), Some(1.0));
    assert_eq!(value("perch_connections_total{listener=\"guarded\"}"), Some(2.0));
    drop(second);
    assert_eq!(value("perch_connections{listener=\"guarded\"}"), Some(0.0));
}

#[test]
fn every_refusal_has_a_counter_from_the_start() {
    start();

    for reason in Reason::ALL {
        assert!(value(&format!("perch_rejected_total{{reason=\"{reason}\"}}")).is_some(), "{reason}");
    }
}

#[test]
fn every_name_has_help_and_appears_once() {
    let names: std::collections::HashSet<_> = ALL.iter().map(|m| m.name).collect();

    assert_eq!(names.len(), ALL.len());
    assert!(ALL.iter().all(|m| m.help.ends_with('.')));
}

#[test]
fn a_reload_replaces_the_certificates_of_its_listener() {
    certificates("https", [("old".to_owned(), 1)]);

    certificates("https", [("new".to_owned(), 2)]);

    let mine: Vec<_> = all_certificates().into_iter().filter(|(listener, ..)| listener == "https").collect();
    assert_eq!(mine, [("https".to_owned(), "new".to_owned(), 2)]);
}

#[test]
fn a_panic_in_a_task_is_counted_and_its_thread_lives() {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let before = panics();

    let next = tokio::task::LocalSet::new().block_on(&runtime, async {
        let ended = tokio::task::spawn_local(async { panic!("as a request might") }).await;
        assert!(ended.unwrap_err().is_panic());
        tokio::task::spawn_local(async { "served" }).await.unwrap()
    });

    assert_eq!(next, "served");
    // Other tests of this process may panic, too.
    assert!(panics() > before);
}

fn panics() -> u64 {
    let rendered = handle().render();
    let line = rendered.lines().find_map(|line| line.strip_prefix("perch_panics_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

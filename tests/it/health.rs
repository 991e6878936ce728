//! Which endpoints are used: ejection and its cap, active checks, none at all, and what a reload does to them
//! (rows G11 to G15).

use std::net::SocketAddr;

use crate::faults::users;
use crate::front::{Front, assert_refused, config, front_with, listener_of, whole};
use crate::support::{Act, Client, PATIENCE, Seen, TestBackend, TestPerch, eventually, ok, response};

/// The states of the endpoints of the only version, in the config's order.
fn states(perch: &TestPerch) -> Vec<String> {
    let services = perch.admin_json("/api/v1/services");
    let endpoints = services["services"][0]["versions"][0]["endpoints"].as_array().unwrap().clone();
    endpoints.iter().map(|endpoint| endpoint["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_dead_endpoint_is_out_soon_and_back_when_it_lives() {
    let backends = ["a", "b", "c"].map(TestBackend::named);
    let endpoints = backends.each_ref().map(TestBackend::address);
    let perch = TestPerch::start(&config("", "ejection: {consecutiveFailures: 3, duration: 500ms}", &endpoints));
    backends[0].refuse();

    // Nobody notices.
    eventually(PATIENCE, || {
        for user in users(30) {
            assert_eq!(Client::plain_from(user, perch.address("http")).get("a", "/").status, 200);
        }
        states(&perch)[0] == "ejected"
    });
    backends[0].accept_again();

    // Those who were moved stay where they are; newcomers come.
    let mut newcomers = (0..=255).flat_map(|a| (1..=250).map(move |b| std::net::IpAddr::from([127, 1, a, b])));
    eventually(PATIENCE, || {
        let newcomer = newcomers.next().unwrap();
        assert_eq!(Client::plain_from(newcomer, perch.address("http")).get("a", "/").status, 200);
        backends[0].count() > 0 && states(&perch)[0] == "ready"
    });
}

#[test]
fn an_endpoint_that_joins_gets_its_share_of_newcomers_slowly() {
    let old = TestBackend::named("old");
    let front = |slow: &str, endpoints: &[SocketAddr]| config("", &format!("slowStart: {slow}"), endpoints);
    let perch = TestPerch::start(&front("1h", &[old.address()]));
    let new = TestBackend::named("new");
    let generation = |n: f64| eventually(PATIENCE, || perch.metric("perch_config_generation") == Some(n));
    let mut newcomers = (0..).map(|n: u32| std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x7f01_0001 + n)));
    let at_new = |newcomers: &mut dyn Iterator<Item = std::net::IpAddr>| {
        let before = new.count();
        newcomers.take(200).for_each(|user| {
            assert_eq!(Client::plain_from(user, perch.address("http")).get("a", "/").status, 200);
        });
        new.count() - before
    };

    // A tenth of its half at first.
    perch.rewrite_config(&front("1h", &[old.address(), new.address()]));
    generation(2.0);
    let cold = at_new(&mut newcomers);
    assert!((1..=25).contains(&cold), "{cold} of 200");

    // What it came with is kept; only the window is over.
    perch.rewrite_config(&front("1ms", &[old.address(), new.address()]));
    generation(3.0);
    let warm = at_new(&mut newcomers);
    assert!((65..=135).contains(&warm), "{warm} of 200");
}

#[test]
fn an_endpoint_that_passes_its_checks_again_warms_up() {
    let backends = ["a", "b"].map(TestBackend::named);
    backends.iter().for_each(|backend| checked(backend, true));
    let check = "health: {path: /ready, interval: 50ms, timeout: 2s, rise: 1, fall: 1, panicPercent: 0}";
    let endpoints = backends.each_ref().map(TestBackend::address);
    let text = |slow: &str| config("", &format!("affinity: None\nslowStart: {slow}\n{check}"), &endpoints);
    let perch = TestPerch::start(&text("1h"));
    let asked = |backend: &TestBackend| backend.seen().iter().filter(|seen| seen.target() == "/").count();
    let part = || {
        let before = asked(&backends[0]);
        let mut client = Client::plain(perch.address("http"));
        (0..100).for_each(|_| assert_eq!(client.get("a", "/").status, 200));
        asked(&backends[0]) - before
    };

    checked(&backends[0], false);
    eventually(PATIENCE, || states(&perch)[0] == "unhealthy");
    assert_eq!(part(), 0);
    checked(&backends[0], true);
    eventually(PATIENCE, || states(&perch)[0] == "ready");

    // It may have a few of the first ones, and has its half at the end.
    let first = part();
    assert!(first < 40, "{first} of 100");
    perch.rewrite_config(&text("1ms"));
    eventually(PATIENCE, || part() > 40);
}

#[test]
fn one_endpoint_always_stays_however_bad() {
    let bad = [(); 2].map(|()| TestBackend::scripted(|_| vec![Act::Send(b"nonsense\r\n\r\n".to_vec()), Act::Close]));
    let service = "ejection: {consecutiveFailures: 1, duration: 1m, maxPercent: 100}";
    let perch = TestPerch::start(&config("", service, &[bad[0].address(), bad[1].address()]));

    for _ in 0..3 {
        for user in users(10) {
            assert_refused(&Client::plain_from(user, perch.address("http")).get("a", "/"), 502, "bad-response");
        }
    }

    let states = states(&perch);
    assert_eq!(states.iter().filter(|state| *state == "ejected").count(), 1, "{states:?}");
}

#[test]
fn active_checks_take_an_endpoint_out_and_back() {
    let check = "health: {path: /ready, interval: 50ms, timeout: 2s, rise: 2, fall: 2, panicPercent: 0}";
    let front = front_with("", check);
    let healthy = |status: &'static str| {
        move |seen: &Seen| if seen.target() == "/ready" { vec![response(seen, status, "", "")] } else { ok(seen, "up") }
    };
    front.backend.script(healthy("200 OK"));
    eventually(PATIENCE, || front.backend.seen().iter().filter(|seen| seen.target() == "/ready").count() > 2);
    assert_eq!(front.client().get("a", "/").text(), "up");

    front.backend.script(healthy("503 Service Unavailable"));
    eventually(PATIENCE, || states(&front.perch) == ["unhealthy"]);
    let answer = front.client().get("a", "/");
    assert_refused(&answer, 503, "no-ready-endpoint");
    assert_eq!(answer.header("retry-after"), Some("1"));

    front.backend.script(healthy("204 No Content"));
    eventually(PATIENCE, || states(&front.perch) == ["ready"]);
    assert_eq!(front.client().get("a", "/").text(), "up");
}

/// An endpoint that fails its checks or passes them, and serves all the same.
fn checked(backend: &TestBackend, passes: bool) {
    backend.script(move |seen: &Seen| {
        if seen.target() == "/ready" && !passes {
            vec![response(seen, "503 Service Unavailable", "", "")]
        } else {
            ok(seen, "up")
        }
    });
}

#[test]
fn when_most_checks_fail_all_endpoints_are_used_and_nobody_changes_versions() {
    let backends: Vec<TestBackend> = (0..6).map(|n| TestBackend::named(&n.to_string())).collect();
    backends.iter().for_each(|backend| checked(backend, true));
    let addresses: Vec<SocketAddr> = backends.iter().map(TestBackend::address).collect();
    let service = "versionHeader: true\nhealth: {path: /ready, interval: 50ms, timeout: 2s, rise: 1, fall: 1}";
    let versions: [(&str, u32, &[SocketAddr]); 2] = [("stable", 1, &addresses[..5]), ("canary", 1, &addresses[5..])];
    let perch = TestPerch::start(&whole(&listener_of("http", ""), service, &versions));
    let version_of = |user| {
        let answer = Client::plain_from(user, perch.address("http")).get("a", "/");
        assert_eq!((answer.status, &*answer.text()), (200, "up"));
        answer.header("perch-version").unwrap().to_owned()
    };
    let before: Vec<String> = users(200).map(version_of).collect();
    let panic = r#"perch_version_panic{service="app",version="stable"}"#;
    assert_eq!(perch.metric(panic), Some(0.0));

    backends[..4].iter().for_each(|backend| checked(backend, false));
    eventually(PATIENCE, || perch.metric(panic) == Some(1.0));

    assert_eq!(states(&perch).iter().filter(|state| *state == "unhealthy").count(), 4);
    assert_eq!(users(200).map(version_of).collect::<Vec<_>>(), before);
    let asked = |backend: &TestBackend| backend.seen().iter().filter(|seen| seen.target() == "/").count();
    let counts: Vec<usize> = backends.iter().map(asked).collect();
    assert_eq!(counts.iter().sum::<usize>(), 400, "every request at the endpoint it had: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0 && count % 2 == 0), "{counts:?}");

    backends.iter().for_each(|backend| checked(backend, true));
    eventually(PATIENCE, || perch.metric(panic) == Some(0.0));
}

#[test]
fn with_none_healthy_and_no_other_version_they_are_tried_anyway() {
    let front = front_with("", "health: {path: /ready, interval: 50ms, timeout: 2s, rise: 1, fall: 1}");
    checked(&front.backend, false);

    eventually(PATIENCE, || states(&front.perch) == ["unhealthy"]);
    eventually(PATIENCE, || front.client().get("a", "/").status == 200);
}

#[test]
fn no_endpoint_no_route_and_closed_are_three_answers() {
    let text = "
admin: {address: '127.0.0.1:0'}
listeners: [{name: http, address: '127.0.0.1:0'}]
routes:
  - {hostnames: [empty.test], service: empty}
  - {hostnames: [closed.test], service: closed}
services:
  - {name: empty, versions: [{name: only, endpoints: []}]}
  - {name: closed, closed: true, versions: [{name: only, weight: 0, endpoints: ['127.0.0.1:1']}]}
";
    let perch = TestPerch::start(text);
    let mut client = Client::plain(perch.address("http"));

    assert_refused(&client.get("empty.test", "/"), 503, "no-ready-endpoint");
    assert_refused(&client.get("closed.test", "/"), 503, "closed");
    assert_refused(&client.get("other.test", "/"), 404, "no-route");
}

/// Requests at once to an endpoint that answers none of them before its gate opens.
fn busy(front: &Front, count: usize) -> Vec<Client> {
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "slow")].concat() } else { ok(seen, "here") }
    });
    let clients = (0..count).map(|_| {
        let mut client = front.client();
        client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
        client
    });
    let clients = clients.collect();
    eventually(PATIENCE, || front.backend.count() == count);
    clients
}

#[test]
fn a_full_endpoint_gets_no_more_requests_and_the_client_knows_at_once() {
    let front = front_with("", "limits: {requestsPerEndpoint: 2}");
    let mut clients = busy(&front, 2);
    let mut one_more = front.client();

    let refused = one_more.get("a", "/");
    assert_refused(&refused, 503, "overflow");
    assert_eq!((refused.header("retry-after"), front.backend.count()), (Some("1"), 2));

    // One opening lets one of them through, whichever it is.
    front.backend.open_gate();
    front.backend.open_gate();
    assert!(clients.iter_mut().all(|client| client.response().text() == "slow"));
    assert_eq!(one_more.get("a", "/").text(), "here");
}

#[test]
fn what_a_full_endpoint_cannot_take_goes_to_another_of_its_version() {
    let front = front_with("", "limits: {requestsPerEndpoint: 1}");
    let _clients = busy(&front, 1);
    let other = TestBackend::named("other");
    front.perch.rewrite_config(&config(
        "",
        "limits: {requestsPerEndpoint: 1}",
        &[front.backend.address(), other.address()],
    ));
    eventually(PATIENCE, || front.perch.metric("perch_config_generation") == Some(2.0));

    assert_eq!(front.client().get("a", "/").text(), "other");
    front.backend.open_gate();
}

#[test]
fn an_endpoint_that_left_is_not_used_again_and_its_requests_finish() {
    let front = front_with("", "timeouts: {idle: 30s}");
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "old")].concat() } else { ok(seen, "old") }
    });
    let mut slow = front.client();
    front.client().get("a", "/");
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || front.backend.count() == 2);
    let new = TestBackend::named("new");

    front.perch.rewrite_config(&config("", "timeouts: {idle: 30s}", &[new.address()]));
    eventually(PATIENCE, || front.perch.metric("perch_config_generation") == Some(2.0));

    // Requests that decide at the very moment of the change may still meet the old one.
    eventually(PATIENCE, || front.client().get("a", "/").text() == "new");
    front.backend.open_gate();
    assert_eq!(slow.response().text(), "old");
    assert_eq!(slow.get("a", "/").text(), "new");
    eventually(PATIENCE, || front.backend.open_connections() == 0);
}

#[test]
fn endpoints_replaced_under_load_lose_nothing() {
    let backends: Vec<TestBackend> = (0..3).map(|n| TestBackend::named(&n.to_string())).collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(TestBackend::address).collect();
    let text = |n: usize| whole(&listener_of("http", ""), "", &[("stable", 1, &[addresses[n % 3]])]);
    let perch = TestPerch::start(&text(0));
    let address = perch.address("http");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = users(4)
        .map(|user| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut client = Client::plain_from(user, address);
                let mut served = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(client.get("a", "/").status, 200);
                    served += 1;
                }
                served
            })
        })
        .collect();

    for n in 1..=10 {
        perch.rewrite_config(&text(n));
        // Each is in force before the next one.
        eventually(PATIENCE, || {
            perch.metric("perch_config_generation") == Some(f64::from(u32::try_from(n).unwrap() + 1))
        });
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);

    assert!(load.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>() > 10);
    assert!(backends.iter().all(|backend| backend.count() > 0));
}

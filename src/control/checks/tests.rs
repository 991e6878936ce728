use std::net::Ipv4Addr;

use tokio::net::TcpListener;
use tokio::sync::watch as cell;

use crate::config::Service;
use crate::control::Writer;
use crate::state::clock::Clock;
use crate::state::fixtures::{config, service};
use crate::state::health::Condition;
use crate::state::pins::Pins;

use super::*;

/// Answers every connection with what the cell says at that time; nothing at all for "".
async fn backend() -> (SocketAddr, cell::Sender<&'static str>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, answer) = cell::channel("HTTP/1.1 200 OK\r\n\r\n");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = *answer.borrow();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                // A byte at a time: heads come in pieces.
                for byte in answer.as_bytes().chunks(1) {
                    if stream.write_all(byte).await.is_err() {
                        return;
                    }
                }
                if answer.is_empty() {
                    sleep(Duration::from_secs(60)).await;
                }
            });
        }
    });
    (address, sender)
}

fn check(rise: u32, fall: u32) -> HealthCheck {
    HealthCheck {
        path: "/healthz".into(),
        port: None,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        rise,
        fall,
        panic_percent: 0,
    }
}

fn checked(address: SocketAddr, health: Option<HealthCheck>) -> Service {
    Service { health, ..service("hello", &[("v", 1.0, &[&address.to_string()])]) }
}

async fn start(service: Service) -> (Control, Arc<Endpoint>) {
    let (writer, control) =
        Writer::start(config(vec![service]), Clock::start(), Arc::new(Pins::new(10))).await.unwrap();
    tokio::spawn(writer.run());
    tokio::spawn(run(control.clone(), EndpointsTls::default(), Clock::start()));
    let endpoint = control.snapshot().services[0].versions[0].endpoints[0].clone();
    (control, endpoint)
}

async fn becomes(endpoint: &Endpoint, condition: Condition) {
    let start = tokio::time::Instant::now();
    while endpoint.health.condition(0) != condition {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?} is not {condition:?}", endpoint.health.condition(0));
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn what_a_check_takes_for_healthy() {
    let (address, answer) = backend().await;
    let mut seen = Vec::new();
    for text in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 302 Found\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\n",
        "SSH-2.0-x\r\n",
    ] {
        answer.send_replace(text);
        seen.push(ask(address, None, false, "/").await.is_ok());
    }

    assert_eq!(seen, [true, true, true, true, false, false, false, false, false]);
}

#[tokio::test]
async fn a_refused_connection_is_unhealthy() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();

    assert!(ask(free, None, false, "/").await.unwrap_err().starts_with("connect: "));
}

#[tokio::test]
async fn a_failing_check_takes_the_endpoint_out_and_a_passing_one_brings_it_back() {
    let (address, answer) = backend().await;
    let (_control, endpoint) = start(checked(address, Some(check(2, 2)))).await;
    assert!(endpoint.health.is_usable(0), "until it is checked");

    answer.send_replace("HTTP/1.1 503 Service Unavailable\r\n\r\n");
    becomes(&endpoint, Condition::Unhealthy).await;
    answer.send_replace("HTTP/1.1 200 OK\r\n\r\n");
    becomes(&endpoint, Condition::Ready).await;
}

#[tokio::test]
async fn no_answer_within_the_timeout_is_a_failure() {
    let (address, answer) = backend().await;
    answer.send_replace("");

    let hurried = HealthCheck { timeout: Duration::from_millis(50), ..check(1, 1) };
    let (_control, endpoint) = start(checked(address, Some(hurried))).await;

    becomes(&endpoint, Condition::Unhealthy).await;
}

#[tokio::test]
async fn an_endpoint_that_is_checked_no_more_counts_as_healthy() {
    let (address, answer) = backend().await;
    answer.send_replace("HTTP/1.1 500 No\r\n\r\n");
    let (control, endpoint) = start(checked(address, Some(check(1, 1)))).await;
    becomes(&endpoint, Condition::Unhealthy).await;

    control.configure(config(vec![checked(address, None)])).await.unwrap();

    becomes(&endpoint, Condition::Ready).await;
}

#[tokio::test]
async fn the_checks_port_may_be_another() {
    let (address, answer) = backend().await;
    answer.send_replace("HTTP/1.1 500 No\r\n\r\n");
    let elsewhere = HealthCheck { port: Some(address.port()), ..check(1, 1) };

    let (_control, endpoint) = start(checked(([127, 0, 0, 1], 9).into(), Some(elsewhere))).await;

    becomes(&endpoint, Condition::Unhealthy).await;
}

#[test]
fn the_first_result_counts_at_once_and_then_it_takes_rise_and_fall_in_a_row() {
    let (rules, mut streak) = (check(2, 3), Streak::default());
    let results = [true, false, false, true, false, false, false, true, false, true, true];

    let changes: Vec<Option<bool>> = results.iter().map(|r| streak.add(*r, &rules)).collect();

    let (up, down) = (Some(true), Some(false));
    assert_eq!(changes, [up, None, None, None, None, None, down, None, None, None, up]);
}

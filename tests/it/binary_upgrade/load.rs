//! Clients that never stop asking: on kept connections, on new ones, over TLS and HTTP/2. Whatever isn't the right answer
//! is a failure, a refused connection too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Client, connect_from, h2};

/// Some clients of one kind.
pub(super) struct Load {
    pub(super) served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// How clients come.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Kept,
    New,
    Tls,
    Http2,
}

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);

impl Load {
    pub(super) fn start(kind: Kind, clients: u8, address: SocketAddr) -> Self {
        let (served, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (1..=clients)
            .map(|n| {
                let (served, stop) = (served.clone(), stop.clone());
                let user = IpAddr::from([127, 0, kind as u8 + 10, n]);
                std::thread::spawn(move || match kind {
                    Kind::Http2 => http2(user, address, &served, &stop),
                    Kind::Kept | Kind::New | Kind::Tls => http1(kind, user, address, &served, &stop),
                })
            })
            .collect();
        Self { served, stop, threads }
    }

    /// What went wrong, and how many answers there were.
    pub(super) fn end(self) -> (Vec<String>, u64) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (failures, self.served.load(Ordering::SeqCst))
    }
}

fn http1(kind: Kind, user: IpAddr, address: SocketAddr, served: &AtomicU64, stop: &AtomicBool) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::SeqCst) && failures.len() < 10 {
        let connected = match kind {
            Kind::Tls => Client::try_tls(user, address, "localhost", h2::tls_config(&[b"http/1.1"])),
            Kind::Kept | Kind::New | Kind::Http2 => connect_from(user, address).map(Client::over_tcp),
        };
        let mut client = match connected {
            Ok(client) => client,
            Err(error) => {
                failures.push(format!("connect: {error}"));
                continue;
            }
        };
        while !stop.load(Ordering::SeqCst) {
            let sent = client.try_send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
            match sent.and_then(|()| client.try_response()) {
                Ok(answer) if answer.status == 200 => {
                    served.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(PAUSE);
                    if matches!(kind, Kind::New) || answer.header("connection") == Some("close") {
                        break;
                    }
                }
                Ok(answer) => failures.push(format!("{answer:?}")),
                Err(error) => {
                    failures.push(format!("request: {error}"));
                    break;
                }
            }
        }
    }
    failures
}

fn http2(user: IpAddr, address: SocketAddr, served: &AtomicU64, stop: &AtomicBool) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut failures = Vec::new();
        while !stop.load(Ordering::SeqCst) && failures.len() < 10 {
            let mut client = h2::H2::tls_from(user, address, "localhost").await;
            while !stop.load(Ordering::SeqCst) {
                match client.try_get().await {
                    Some(Ok(())) => drop(served.fetch_add(1, Ordering::SeqCst)),
                    Some(Err(failure)) => {
                        failures.push(failure);
                        break;
                    }
                    None => break,
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        failures
    })
}

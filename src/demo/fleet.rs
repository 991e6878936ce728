//! The demo's sample services: `hello` stable and canary, `auth`, each with its health port, all on one thread of their
//! own so that they and the proxy do not share a runtime.
//!
//! Like pods, each has an address of its own and all have the same two ports, so that the health checks of the
//! configuration find them. Where only 127.0.0.1 exists (not Linux) they have ports instead, and no health port is used.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::oneshot;

use crate::backend::{self, Kind, Running};

/// Signs the demo's tokens. Public, like the password: nothing here is worth protecting.
const SECRET: &str = "secret";

/// Where the first sample listens; the next ones count up. A block that nothing else uses.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 10, 1);

/// The first pair of ports that is tried, and how many pairs.
const FIRST_PORT: u16 = 8080;
const PORT_PAIRS: u16 = 50;

/// What a sample service is stopped after at the latest: a demo ends quickly.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Where everything listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub stable: Vec<SocketAddr>,
    pub canary: SocketAddr,
    pub auth: SocketAddr,
    /// `None`: no common port, so the service port is checked.
    pub health_port: Option<u16>,
}

impl Addresses {
    /// As they would be on a machine where nothing is taken.
    #[must_use]
    pub fn nominal(stable: u8) -> Self {
        Self::on_port(stable, FIRST_PORT)
    }

    fn on_port(stable: u8, port: u16) -> Self {
        let mut octets = FIRST_ADDRESS.octets();
        let mut next = || {
            let address = SocketAddr::from((octets, port));
            octets[3] += 1;
            address
        };
        // At most 200 of them (the option's bound): the last octet has room.
        let (stable, canary, auth) = ((0..stable).map(|_| next()).collect(), next(), next());
        Self { stable, canary, auth, health_port: Some(port + 1) }
    }
}

/// The running samples. Dropped: stopped.
#[derive(Debug)]
pub struct Fleet {
    pub addresses: Addresses,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Starts so many stable instances of `hello`, one canary and one `auth`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(stable: u8) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (addresses, running) = runtime.block_on(start_all(stable))?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("samples".into()).spawn(move || {
            runtime.block_on(async {
                // An error means that the fleet was dropped: the same.
                stopped.await.ok();
                let stopping = running.into_iter().map(|one| tokio::spawn(one.stop())).collect::<Vec<_>>();
                let all = async {
                    for one in stopping {
                        one.await.ok();
                    }
                };
                tokio::time::timeout(STOP_DEADLINE, all).await.ok();
            });
        })?;
        Ok(Self { addresses, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("The sample services ended badly.");
        }
    }
}

async fn start_all(stable: u8) -> anyhow::Result<(Addresses, Vec<Running>)> {
    if TcpListener::bind((FIRST_ADDRESS, 0)).is_err() {
        return start_on_one_address(stable).await.context("cannot start the sample services");
    }
    for pair in 0..PORT_PAIRS {
        let addresses = Addresses::on_port(stable, FIRST_PORT + 2 * pair);
        match start_at(&addresses).await {
            Ok(running) => return Ok((addresses, running)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("cannot start the sample services"),
        }
    }
    let last = FIRST_PORT + 2 * PORT_PAIRS - 1;
    bail!("cannot start the sample services: the ports {FIRST_PORT} to {last} are taken; end what uses them")
}

async fn start_at(addresses: &Addresses) -> std::io::Result<Vec<Running>> {
    let health = |address: SocketAddr| SocketAddr::new(address.ip(), addresses.health_port.unwrap_or(0));
    let mut running = Vec::new();
    for &address in &addresses.stable {
        running.push(start(Kind::Hello, "1.0.0", address, health(address)).await?);
    }
    running.push(start(Kind::Hello, "2.0.0", addresses.canary, health(addresses.canary)).await?);
    running.push(start(Kind::Auth, "1.0.0", addresses.auth, health(addresses.auth)).await?);
    Ok(running)
}

async fn start_on_one_address(stable: u8) -> std::io::Result<(Addresses, Vec<Running>)> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let addresses = Addresses { stable: vec![any; usize::from(stable)], canary: any, auth: any, health_port: None };
    let running = start_at(&addresses).await?;
    let mut bound = running.iter().map(|one| one.address);
    let stable = bound.by_ref().take(usize::from(stable)).collect();
    let (canary, auth) = (bound.next().unwrap_or(any), bound.next().unwrap_or(any));
    drop(bound);
    Ok((Addresses { stable, canary, auth, health_port: None }, running))
}

async fn start(kind: Kind, version: &str, listen: SocketAddr, health_listen: SocketAddr) -> std::io::Result<Running> {
    let options = backend::Options {
        version: version.into(),
        listen,
        health_listen,
        secret: SECRET.into(),
        delay: Duration::ZERO,
        fail_rate: 0.0,
        grace: Duration::ZERO,
    };
    backend::start(kind, options).await
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn two_fleets_live_side_by_side() {
        let one = Fleet::start(3).unwrap();
        let other = Fleet::start(3).unwrap();

        assert_ne!(one.addresses.auth, other.addresses.auth);
    }

    #[test]
    fn a_dropped_fleet_ends_its_connections() {
        let fleet = Fleet::start(1).unwrap();
        let mut socket = std::net::TcpStream::connect(fleet.addresses.canary).unwrap();

        drop(fleet);

        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let ended = socket.read(&mut [0]);
        assert!(!ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{ended:?}");
    }

    #[test]
    fn every_sample_has_an_address_of_its_own() {
        let addresses = Addresses::nominal(200);

        let mut all = addresses.stable.clone();
        all.extend([addresses.canary, addresses.auth]);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 202);
    }
}

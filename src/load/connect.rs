//! A connection of one client: from its own address, with its PROXY header, over TLS or not.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::fault::{Fault, Kind};
use super::identity::Identity;
use super::plan::Plan;
use crate::decide::proxy_protocol::{encode_v1, encode_v2};

/// Plain or TLS. Boxed: the TLS state is a kilobyte that would sit in every future otherwise.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connects as client `index`, within the time limit of a request.
///
/// # Errors
/// Says which step did not work.
pub async fn connect(plan: &Plan, index: u32) -> Result<Stream, Fault> {
    tokio::time::timeout(plan.timeout, unlimited(plan, index)).await.unwrap_or_else(|_| {
        let target = plan.target.address;
        Err(Fault::new(Kind::Timeout, format!("no connection to {target} within {:?}", plan.timeout)))
    })
}

async fn unlimited(plan: &Plan, index: u32) -> Result<Stream, Fault> {
    let target = plan.target.address;
    let client = plan.ranges.as_ref().map(|r| r.address(index));
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|e| Fault::connecting(&e, "socket"))?;
    if let (Identity::Source, Some(client)) = (plan.identity, client) {
        bind(&socket, client)?;
    }
    let mut tcp = socket.connect(target).await.map_err(|e| Fault::connecting(&e, target))?;
    tcp.set_nodelay(true).map_err(|e| Fault::connecting(&e, target))?;
    // A header has both ports; the client's own is any.
    let header = match (plan.identity, client.map(|c| SocketAddr::new(c, 40_000))) {
        (Identity::ProxyV1, Some(client)) => Some(encode_v1(client, target)),
        (Identity::ProxyV2, Some(client)) => Some(encode_v2(client, target)),
        _ => None,
    };
    if let Some(header) = header {
        tcp.write_all(&header).await.map_err(|e| Fault::talking(&e))?;
    }
    match &plan.target.tls {
        None => Ok(Either::Left(tcp)),
        Some(tls) => {
            let stream = tls.connector.connect(tls.name.clone(), tcp).await.map_err(|e| tls_fault(&e))?;
            Ok(Either::Right(Box::new(stream)))
        }
    }
}

fn bind(socket: &TcpSocket, client: IpAddr) -> Result<(), Fault> {
    // The port is chosen at connect(), where only the 4-tuple has to be free: one address then has all ports towards
    // each server, and those in TIME_WAIT can be taken again.
    setsockopt(socket, IpBindAddressNoPort, &true)
        .map_err(|e| Fault::new(Kind::ConnectFailed, format!("IP_BIND_ADDRESS_NO_PORT: {e}")))?;
    socket
        .bind(SocketAddr::new(client, 0))
        .map_err(|e| Fault::new(Kind::SourceAddress, format!("bind to {client}: {e}")))
}

fn tls_fault(error: &std::io::Error) -> Fault {
    let fault = Fault::talking(error);
    match fault.kind {
        Kind::Timeout => fault,
        _ => Fault::new(Kind::Tls, format!("TLS handshake: {error}")),
    }
}

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
    let header = match (plan.identity, client) {
        (Identity::ProxyV1, Some(client)) => Some(proxy_v1(client, target)),
        (Identity::ProxyV2, Some(client)) => Some(proxy_v2(client, target)),
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

const CLIENT_PORT: u16 = 40_000;

fn proxy_v1(client: IpAddr, target: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let server = same_family(client, target.ip());
    format!("PROXY {family} {client} {server} {CLIENT_PORT} {}\r\n", target.port()).into_bytes()
}

fn proxy_v2(client: IpAddr, target: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let server = same_family(client, target.ip());
    match (client, server) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            header.extend_from_slice(&[0x11, 0, 12]);
            header.extend_from_slice(&client.octets());
            header.extend_from_slice(&server.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(server)) => {
            header.extend_from_slice(&[0x21, 0, 36]);
            header.extend_from_slice(&client.octets());
            header.extend_from_slice(&server.octets());
        }
        _ => unreachable!("same_family gives the client's family"),
    }
    header.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    header.extend_from_slice(&target.port().to_be_bytes());
    header
}

/// A PROXY header has both addresses of one family.
fn same_family(client: IpAddr, server: IpAddr) -> IpAddr {
    match (client, server) {
        (IpAddr::V4(_), IpAddr::V6(v6)) => IpAddr::V4(v6.to_ipv4_mapped().unwrap_or(std::net::Ipv4Addr::LOCALHOST)),
        (IpAddr::V6(_), IpAddr::V4(v4)) => IpAddr::V6(v4.to_ipv6_mapped()),
        _ => server,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_headers_are_those_of_the_specification() {
        let target = "127.0.0.1:443".parse().unwrap();

        assert_eq!(
            proxy_v1("192.0.2.1".parse().unwrap(), target),
            b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 443\r\n".to_vec()
        );
        assert_eq!(
            proxy_v2("192.0.2.1".parse().unwrap(), target),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\x9c\x40\x01\xbb".to_vec()
        );
        assert_eq!(proxy_v2("2001:db8::1".parse().unwrap(), target).len(), 16 + 36);
    }
}

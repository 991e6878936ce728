//! An HTTP/2 client: hyper's, over TLS (ALPN `h2`, any certificate) or with prior knowledge. Its connection runs as a
//! task of the test's own runtime (`#[tokio::test]`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

pub use super::client::tls_config;

/// Whatever body a test wants to send.
pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A connection.
#[derive(Debug)]
pub struct H2 {
    /// Clone it for requests at the same time.
    pub sender: SendRequest<Body>,
    /// Ends with the connection: `Ok` after GOAWAY and the last stream.
    pub connection: JoinHandle<hyper::Result<()>>,
    authority: String,
}

/// A response read to its end.
#[derive(Debug)]
pub struct Whole {
    pub head: http::response::Parts,
    pub body: Bytes,
}

impl H2 {
    /// Over TLS.
    pub async fn tls(address: SocketAddr, server_name: &str) -> Self {
        Self::tls_from(IpAddr::V4(Ipv4Addr::LOCALHOST), address, server_name).await
    }

    /// Over TLS, from this loopback address.
    pub async fn tls_from(source: IpAddr, address: SocketAddr, server_name: &str) -> Self {
        Self::over(stream_from(source, address, server_name).await, server_name).await
    }

    /// A TLS connection that speaks `h2`, for who wants to see what hyper hides.
    pub async fn stream(address: SocketAddr, server_name: &str) -> TlsStream<TcpStream> {
        stream_from(IpAddr::V4(Ipv4Addr::LOCALHOST), address, server_name).await
    }

    /// Prior knowledge, over plain TCP.
    pub async fn plain(address: SocketAddr) -> Self {
        let stream = connect(IpAddr::V4(Ipv4Addr::LOCALHOST), address).await;
        Self::over(stream, &address.to_string()).await
    }

    async fn over<S>(stream: S, authority: &str) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection), authority: authority.to_owned() }
    }

    /// A `GET` read to its end.
    pub async fn get(&mut self, path: &str) -> Whole {
        let request = self.request("GET", path).body(empty()).unwrap();
        whole(self.send(request).await.unwrap()).await.unwrap()
    }

    /// Whether a `GET /` was answered with 200. `None`: it never reached an endpoint, for the connection takes no more.
    pub async fn try_get(&mut self) -> Option<Result<(), String>> {
        self.sender.ready().await.ok()?;
        let request = self.request("GET", "/").body(empty()).unwrap();
        match self.sender.try_send_request(request).await {
            Ok(answer) => {
                let status = answer.status();
                match whole(answer).await {
                    Ok(_) if status == 200 => Some(Ok(())),
                    other => Some(Err(format!("{status} {other:?}"))),
                }
            }
            Err(error) if error.message().is_some() => None,
            Err(error) => Some(Err(format!("{error:?}"))),
        }
    }

    /// A request to this connection's authority, to be finished by the test.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        http::Request::builder().method(method).uri(format!("https://{}{path}", self.authority))
    }

    /// The response's head; its body streams.
    pub async fn send(&mut self, request: http::Request<Body>) -> hyper::Result<http::Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

async fn stream_from(source: IpAddr, address: SocketAddr, server_name: &str) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(&tls_config(&[b"h2"])))
        .connect(name, connect(source, address).await)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the server does not speak h2");
    stream
}

impl Whole {
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }
}

/// Reads a response to its end.
pub async fn whole(response: http::Response<Incoming>) -> hyper::Result<Whole> {
    let (head, body) = response.into_parts();
    Ok(Whole { head, body: body.collect().await?.to_bytes() })
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

async fn connect(source: IpAddr, address: SocketAddr) -> TcpStream {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }.unwrap();
    if source.is_ipv4() == address.is_ipv4() {
        socket.bind(SocketAddr::new(source, 0)).unwrap();
    }
    let stream = socket.connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

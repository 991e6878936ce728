//! HTTP/1 by hand: send these bytes, read whatever comes, with a deadline. Plain or TLS (any certificate is accepted),
//! from any loopback address. Blocking, so that a test reads top-down.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch::load::tls::AnyCertificate;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::PATIENCE;

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Read from the socket, not yet taken.
    buffer: Vec<u8>,
    deadline: Duration,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A response as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// Chunked coding removed.
    pub body: Vec<u8>,
    /// Trailers, names in lower case.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The first field of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body, which must be UTF-8.
    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One `GET` on a connection of its own, over plain HTTP.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Response {
    let mut client = Client::plain(address);
    client.get(&address.to_string(), target)
}

impl Client {
    /// Over plain TCP.
    #[track_caller]
    pub fn plain(address: SocketAddr) -> Self {
        Self::plain_from(IpAddr::V4(Ipv4Addr::LOCALHOST), address)
    }

    /// Over this TCP connection.
    pub fn over_tcp(socket: TcpStream) -> Self {
        Self::over(Stream::Plain(socket))
    }

    /// Over plain TCP, from this loopback address.
    #[track_caller]
    pub fn plain_from(source: IpAddr, address: SocketAddr) -> Self {
        Self::over(Stream::Plain(connect_from(source, address).unwrap()))
    }

    /// Over TLS with ALPN `http/1.1`; any certificate is accepted.
    #[track_caller]
    pub fn tls(address: SocketAddr, server_name: &str) -> Self {
        Self::tls_from(IpAddr::V4(Ipv4Addr::LOCALHOST), address, server_name)
    }

    /// Over TLS, from this loopback address.
    #[track_caller]
    pub fn tls_from(source: IpAddr, address: SocketAddr, server_name: &str) -> Self {
        Self::try_tls(source, address, server_name, tls_config(&[b"http/1.1"])).unwrap()
    }

    /// Over TLS with a config of the test's own; the error of the handshake, if any.
    pub fn try_tls(
        source: IpAddr,
        address: SocketAddr,
        server_name: &str,
        config: Arc<ClientConfig>,
    ) -> std::io::Result<Self> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(std::io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
        let mut socket = connect_from(source, address)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self::over(Stream::Tls(Box::new(StreamOwned::new(connection, socket)))))
    }

    fn over(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new(), deadline: PATIENCE }
    }

    /// How long each read below waits, instead of [`PATIENCE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub fn local_address(&self) -> SocketAddr {
        self.socket().local_addr().unwrap()
    }

    /// The TCP socket under it.
    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    /// The TLS connection.
    #[track_caller]
    pub fn tls_connection(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Plain(_) => panic!("this connection is plain"),
            Stream::Tls(tls) => &tls.conn,
        }
    }

    /// The certificate that the server presented.
    #[track_caller]
    pub fn peer_certificate(&self) -> Vec<u8> {
        self.tls_connection().peer_certificates().unwrap()[0].to_vec()
    }

    /// Sends bytes; panics when the other side does not take them.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends bytes; the error when the other side is gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let bytes = bytes.as_ref();
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    /// Says that nothing more will be sent (FIN; with TLS `close_notify` before it).
    pub fn half_close(&mut self) {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            tls.flush().ok();
        }
        self.socket().shutdown(Shutdown::Write).ok();
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// One `GET` with nothing but Host.
    #[track_caller]
    pub fn get(&mut self, host: &str, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        self.response()
    }

    /// Sends a whole request and reads its response (`head` without the empty line; `content-length` is added).
    #[track_caller]
    pub fn request(&mut self, head: &str, body: &[u8]) -> Response {
        let is_head = head.starts_with("HEAD ");
        self.send(format!("{}\r\ncontent-length: {}\r\n\r\n", head.trim_end(), body.len()));
        self.send(body);
        self.final_response(is_head).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The next final response (1xx are skipped); panics when none comes.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The next final response (1xx are skipped), or why there is none.
    pub fn try_response(&mut self) -> std::io::Result<Response> {
        self.final_response(false)
    }

    /// The response to a HEAD: no body is read, whatever Content-Length says.
    pub fn try_head_response(&mut self) -> std::io::Result<Response> {
        self.final_response(true)
    }

    /// The next response head, 1xx included. The body, if any, is still to be read.
    pub fn try_response_head(&mut self) -> std::io::Result<Response> {
        let end = Instant::now() + self.deadline;
        loop {
            if let Some((response, length)) = parse_head(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(response);
            }
            self.fill(end)?;
        }
    }

    fn final_response(&mut self, is_head: bool) -> std::io::Result<Response> {
        let mut response = self.try_response_head()?;
        while (100..200).contains(&response.status) && response.status != 101 {
            response = self.try_response_head()?;
        }
        if !is_head && !matches!(response.status, 101 | 204 | 304) {
            self.read_body(&mut response)?;
        }
        Ok(response)
    }

    fn read_body(&mut self, response: &mut Response) -> std::io::Result<()> {
        let end = Instant::now() + self.deadline;
        if response.header("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.read_line(end)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| bad(format!("chunk size {line:?}")))?;
                if size == 0 {
                    break;
                }
                let chunk = self.read_exactly(size, end)?;
                response.body.extend_from_slice(&chunk);
                if !self.read_line(end)?.is_empty() {
                    return Err(bad("no line end after a chunk"));
                }
            }
            loop {
                let line = self.read_line(end)?;
                let Some((name, value)) = line.split_once(':') else { break };
                response.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| bad(format!("content-length {length:?}")))?;
            response.body = self.read_exactly(length, end)?;
        } else {
            response.body = self.read_to_end()?;
        }
        Ok(())
    }

    fn read_line(&mut self, end: Instant) -> std::io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return String::from_utf8(line[..at].to_vec()).map_err(|_| bad("a line that is not UTF-8"));
            }
            self.fill(end)?;
        }
    }

    /// Exactly this many bytes.
    pub fn read_exact(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        self.read_exactly(length, Instant::now() + self.deadline)
    }

    fn read_exactly(&mut self, length: usize, end: Instant) -> std::io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill(end)?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Everything up to the end of the connection; an error when it was reset or the deadline passed.
    pub fn read_to_end(&mut self) -> std::io::Result<Vec<u8>> {
        let end = Instant::now() + self.deadline;
        loop {
            match self.fill(end) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(std::mem::take(&mut self.buffer)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Throws away what was read from the socket and not yet taken; how much it was.
    pub fn take_buffered(&mut self) -> usize {
        std::mem::take(&mut self.buffer).len()
    }

    /// Whatever has come within `time`, possibly nothing. Never fails: the end of the connection is the end of it.
    pub fn read_for(&mut self, time: Duration) -> Vec<u8> {
        let end = Instant::now() + time;
        while self.fill(end).is_ok() {}
        std::mem::take(&mut self.buffer)
    }

    /// Waits until the other side ended the connection (FIN or reset), throwing away what still comes. False when it is
    /// still open at the deadline.
    pub fn is_closed_within(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            self.buffer.clear();
            match self.fill(end) {
                Ok(()) => {}
                Err(error) => return error.kind() != ErrorKind::TimedOut,
            }
        }
    }

    /// Reads once. `UnexpectedEof` at the end, `TimedOut` past `end`.
    fn fill(&mut self, end: Instant) -> std::io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::new(ErrorKind::TimedOut, format!("nothing more came; had {:?}", self.shown())));
        }
        self.socket().set_read_timeout(Some(left))?;
        let read = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut chunk),
            Stream::Tls(tls) => tls.read(&mut chunk),
        };
        match read {
            Ok(0) => Err(std::io::Error::new(ErrorKind::UnexpectedEof, format!("closed; had {:?}", self.shown()))),
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            // The socket's own timeout: the loop above turns it into TimedOut.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(400)]).into_owned()
    }
}

/// A TLS client that accepts any certificate and offers these protocols.
pub fn tls_config(alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

pub fn connect_from(source: IpAddr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if source.is_ipv4() == address.is_ipv4() {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&address.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn parse_head(bytes: &[u8]) -> std::io::Result<Option<(Response, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(bad(format!("{error} in {:?}", String::from_utf8_lossy(bytes)))),
    };
    let headers = parsed
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let status = parsed.code.ok_or_else(|| bad("no status"))?;
    Ok(Some((Response { status, headers, body: Vec::new(), trailers: Vec::new() }, length)))
}

fn bad(what: impl Into<String>) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, what.into())
}

//! An upstream that does exactly what the test tells it, well or badly: it answers, stalls, resets, trickles, sends
//! garbage, too much or too little. It records each request byte by byte. A thread per connection: what a request does
//! reads as a list of [`Act`]s.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a request, once its head is there.
#[derive(Clone, Debug)]
pub enum Act {
    /// Reads (and records) the request's body by its framing.
    ReadBody,
    /// Sends `HTTP/1.1 100 Continue` when the request asks for it.
    Continue,
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes one by one, so long apart.
    Trickle(Vec<u8>, Duration),
    /// Does nothing for so long: for time limits, which are what is tested then.
    Pause(Duration),
    /// Does nothing until the test opens this gate ([`TestBackend::open_gate`]).
    Gate,
    /// Does nothing until the other side ends the connection.
    Stall,
    /// Sends back all that comes until the other side's FIN, then FIN: a tunnel.
    Echo,
    /// FIN; reading goes on.
    HalfClose,
    /// Ends the connection with FIN.
    Close,
    /// Ends the connection with a reset.
    Reset,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From 0, over all connections.
    pub number: usize,
    /// From 0, in the order they were accepted.
    pub connection: usize,
    /// From 0, on its connection: more than 0 means the connection was reused.
    pub on_connection: usize,
    /// Up to and with the empty line, byte by byte.
    pub head: Vec<u8>,
    /// As it came, chunked coding included. Only what [`Act::ReadBody`] read.
    pub raw_body: Vec<u8>,
    /// Without chunked coding.
    pub body: Vec<u8>,
    /// The whole body came.
    pub is_whole: bool,
}

impl Seen {
    pub fn method(&self) -> String {
        self.start_line().split(' ').next().unwrap_or_default().to_owned()
    }

    pub fn target(&self) -> String {
        self.start_line().split(' ').nth(1).unwrap_or_default().to_owned()
    }

    pub fn start_line(&self) -> String {
        self.head_text().lines().next().unwrap_or_default().to_owned()
    }

    pub fn head_text(&self) -> String {
        String::from_utf8_lossy(&self.head).into_owned()
    }

    /// The values of all fields of this name, in order.
    pub fn headers(&self, name: &str) -> Vec<String> {
        self.head_text()
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    /// The first field of this name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers(name).into_iter().next()
    }
}

/// A good answer: the body is read, then 200 with this body (none after HEAD).
pub fn ok(seen: &Seen, body: &str) -> Vec<Act> {
    vec![Act::Continue, Act::ReadBody, response(seen, "200 OK", "content-type: text/plain\r\n", body)]
}

/// One whole response. `fields` end in `\r\n` each.
pub fn response(seen: &Seen, status: &str, fields: &str, body: &str) -> Act {
    let head = format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n", body.len());
    Act::Send(if seen.method() == "HEAD" { head } else { head + body }.into_bytes())
}

/// The running upstream. Dropped: stopped, its connections closed.
#[derive(Debug)]
pub struct TestBackend {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Script = Arc<dyn Fn(&Seen) -> Vec<Act> + Send + Sync>;

struct Shared {
    /// Bound and never listening: keeps the port when nobody listens.
    holder: socket2::Socket,
    listener: Mutex<Option<Arc<TcpListener>>>,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
    is_stopped: AtomicBool,
    gate: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl TestBackend {
    /// Answers every request with 200 and this name as the body.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self::scripted(move |seen| ok(seen, &name))
    }

    /// Does with each request what `script` says. After the last act the connection is kept for the next request,
    /// unless an act closed it.
    pub fn scripted(script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let holder = reusable_socket();
        holder.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = holder.local_addr().unwrap().as_socket().expect("an IPv4 address");
        let shared = Arc::new(Shared {
            holder,
            listener: Mutex::new(None),
            script: Mutex::new(Arc::new(script)),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            sockets: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            gate: AtomicUsize::new(0),
        });
        let backend = Self { address, shared };
        backend.accept_again();
        backend
    }

    /// An upstream that is down: connections are refused, and nobody else can take its port.
    pub fn refusing() -> Self {
        let backend = Self::named("refusing");
        backend.refuse();
        backend
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another script, from the next request on.
    pub fn script(&self, script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// All requests so far, in the order their heads came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The last request.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("no request came")
    }

    /// Requests so far.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// From now on connections are refused (RST to the SYN). Those that are open live on.
    pub fn refuse(&self) {
        if let Some(listener) = self.shared.listener.lock().unwrap().take() {
            // Refuses at once and wakes accept(), which then lets go of it.
            socket2::SockRef::from(&*listener).shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Accepts again after [`Self::refuse`].
    pub fn accept_again(&self) {
        let socket = reusable_socket();
        socket.bind(&self.shared.holder.local_addr().unwrap()).unwrap();
        socket.listen(1024).unwrap();
        let listener = Arc::new(TcpListener::from(socket));
        *self.shared.listener.lock().unwrap() = Some(listener.clone());
        let shared = self.shared.clone();
        std::thread::spawn(move || accept(&listener, &shared));
    }

    /// Ends all open connections with FIN.
    pub fn close_connections(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    /// Lets one request that waits at [`Act::Gate`] (now or later) go on.
    pub fn open_gate(&self) {
        self.shared.gate.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        self.refuse();
        self.close_connections();
    }
}

fn reusable_socket() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept() {
        let shared = shared.clone();
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        shared.open.fetch_add(1, Ordering::SeqCst);
        shared.sockets.lock().unwrap().push(socket.try_clone().unwrap());
        std::thread::spawn(move || {
            socket.set_nodelay(true).ok();
            let mut connection = Connection { socket, buffer: Vec::new(), number, shared: shared.clone() };
            connection.serve();
            // The clone in `sockets` keeps the descriptor open: the end must be said.
            connection.socket.shutdown(Shutdown::Both).ok();
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    number: usize,
    shared: Arc<Shared>,
}

/// The connection is over.
struct Ended;

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Connection {
    fn serve(&mut self) {
        let mut on_connection = 0;
        while let Ok(head) = self.read_through(b"\r\n\r\n") {
            let index = {
                let mut all = self.shared.seen.lock().unwrap();
                let number = all.len();
                all.push(Seen { number, connection: self.number, on_connection, head, ..Seen::default() });
                number
            };
            let seen = self.shared.seen.lock().unwrap()[index].clone();
            // Not under the lock: a script may ask the backend for what it has seen.
            let script = self.shared.script.lock().unwrap().clone();
            for act in script(&seen) {
                if self.act(act, index, &seen).is_err() {
                    return;
                }
            }
            on_connection += 1;
        }
    }

    fn act(&mut self, act: Act, index: usize, seen: &Seen) -> Result<(), Ended> {
        match act {
            Act::ReadBody => self.read_body(index, seen)?,
            Act::Continue => {
                if seen.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
                    self.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
            }
            Act::Send(bytes) => self.socket.write_all(&bytes)?,
            Act::Trickle(bytes, apart) => {
                for byte in bytes {
                    self.socket.write_all(&[byte])?;
                    std::thread::sleep(apart);
                }
            }
            Act::Pause(time) => std::thread::sleep(time),
            Act::Gate => self.wait_at_gate()?,
            Act::Stall => while self.read_some().is_ok() {},
            Act::Echo => {
                let early = std::mem::take(&mut self.buffer);
                self.socket.write_all(&early)?;
                while self.read_some().is_ok() {
                    let bytes = std::mem::take(&mut self.buffer);
                    self.socket.write_all(&bytes)?;
                }
                return Err(Ended);
            }
            Act::HalfClose => self.socket.shutdown(Shutdown::Write)?,
            Act::Close => return Err(Ended),
            Act::Reset => {
                socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO))?;
                // The reset is sent when the last descriptor is closed, so the clone must go too.
                let peer = self.socket.peer_addr()?;
                self.shared.sockets.lock().unwrap().retain(|socket| socket.peer_addr().is_ok_and(|p| p != peer));
                self.socket = unconnected();
                return Err(Ended);
            }
        }
        Ok(())
    }

    fn wait_at_gate(&self) -> Result<(), Ended> {
        let gate = &self.shared.gate;
        loop {
            let open = gate.load(Ordering::SeqCst);
            if open > 0 && gate.compare_exchange(open, open - 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Ok(());
            }
            if self.shared.is_stopped.load(Ordering::SeqCst) {
                return Err(Ended);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn read_body(&mut self, index: usize, seen: &Seen) -> Result<(), Ended> {
        if seen.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.read_through(b"\r\n")?;
                self.record(index, &line, false);
                let text = String::from_utf8_lossy(&line);
                let Ok(size) = usize::from_str_radix(text.split([';', '\r']).next().unwrap_or_default(), 16) else {
                    return Err(Ended);
                };
                if size == 0 {
                    break;
                }
                self.record_exactly(size, index, true)?;
                self.record_exactly(2, index, false)?;
            }
            loop {
                let trailer = self.read_through(b"\r\n")?;
                self.record(index, &trailer, false);
                if trailer == b"\r\n" {
                    break;
                }
            }
        } else {
            let length = seen.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            self.record_exactly(length, index, true)?;
        }
        self.shared.seen.lock().unwrap()[index].is_whole = true;
        Ok(())
    }

    /// Records as it comes: what was there when the other side gave up is recorded too.
    fn record_exactly(&mut self, mut length: usize, index: usize, is_data: bool) -> Result<(), Ended> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.read_some()?;
            }
            let take = length.min(self.buffer.len());
            let bytes: Vec<u8> = self.buffer.drain(..take).collect();
            self.record(index, &bytes, is_data);
            length -= take;
        }
        Ok(())
    }

    fn record(&self, index: usize, bytes: &[u8], is_data: bool) {
        let mut all = self.shared.seen.lock().unwrap();
        all[index].raw_body.extend_from_slice(bytes);
        if is_data {
            all[index].body.extend_from_slice(bytes);
        }
    }

    /// Up to and with `end`.
    fn read_through(&mut self, end: &[u8]) -> Result<Vec<u8>, Ended> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.read_some()?;
        }
    }

    fn read_some(&mut self) -> Result<(), Ended> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(Ended),
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
    }
}

fn unconnected() -> TcpStream {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{Client, PATIENCE, eventually};

    #[test]
    fn a_request_is_recorded_byte_by_byte() {
        let backend = TestBackend::named("v1");
        let mut client = Client::plain(backend.address());

        client.send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        let answer = client.response();

        assert_eq!((answer.status, answer.text().as_str()), (200, "v1"));
        let seen = backend.last();
        assert_eq!(seen.head, b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!((&seen.raw_body[..], &seen.body[..]), (&b"3\r\nabc\r\n0\r\n\r\n"[..], &b"abc"[..]));
        assert!(seen.is_whole);
    }

    #[test]
    fn a_connection_is_kept_for_the_next_request() {
        let backend = TestBackend::named("v1");
        let mut client = Client::plain(backend.address());

        client.get("x", "/1");
        client.get("x", "/2");

        assert_eq!((backend.connections(), backend.last().on_connection), (1, 1));
    }

    #[test]
    fn a_reset_is_a_reset() {
        let backend = TestBackend::scripted(|_| vec![Act::Reset]);
        let mut client = Client::plain(backend.address());

        client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");

        assert_eq!(client.try_response().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_backend_refuses_and_accepts_again() {
        let backend = TestBackend::refusing();
        assert_eq!(TcpStream::connect(backend.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        backend.accept_again();

        eventually(PATIENCE, || TcpStream::connect(backend.address()).is_ok());
        assert_eq!(Client::plain(backend.address()).get("x", "/").status, 200);
    }
}

//! WebSocket over HTTP/2 (RFC 8441): an extended CONNECT of the client, an upgrade at the HTTP/1 endpoint, and a tunnel
//! between the stream and the endpoint's connection once the endpoint has said 101.
//!
//! The stream is a tunnel only after that: what the client sends before waits in its window. A half-close is carried over.

use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::super::buffer::Buffer;
use super::super::http1::tunnel;
use super::super::journal::Entry;
use super::super::upstream::{self, Link};
use super::super::watchdog::Watchdog;
use super::relay::Answer;
use super::{ActiveStream, Session};
use crate::reason::Reason;

/// The client's side of a tunnel to be; `None` when the request asks for none, or for another protocol.
pub(super) fn asked(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let protocol = request.extensions().get::<ext::Protocol>()?;
    protocol.as_str().eq_ignore_ascii_case("websocket").then(|| hyper::upgrade::on(request))
}

/// The endpoint switched: the answer, with the tunnel behind it in a task of its own.
pub(super) fn accept(
    session: &Rc<Session>,
    stream: ActiveStream,
    mut response: Response<()>,
    upgrade: OnUpgrade,
    mut link: Link,
    mut entry: Entry,
) -> Response<Answer> {
    *response.status_mut() = StatusCode::OK;
    // Of the handshake in HTTP/1 (RFC 8441 section 5).
    response.headers_mut().remove("sec-websocket-accept");
    entry.status = 200;
    let owner = session.clone();
    tokio::task::spawn_local(async move {
        // Held until the tunnel ends.
        let _stream = stream;
        let buffers = &owner.worker.buffers;
        let idle = owner.connection.listener.config.timeouts.upgraded_idle;
        match upgrade.await {
            Ok(upgraded) => {
                let mut io = TokioIo::new(upgraded);
                let (mut buffer, mut dog) = (Buffer::default(), Watchdog::new(Instant::now() + idle));
                let (up, down) = tunnel::run(&mut io, &mut buffer, &mut dog, &mut link, idle, buffers).await;
                buffer.clear(buffers);
                entry.bytes_in = up;
                entry.bytes_out = down;
            }
            Err(_) => entry.reason = Some(Reason::ClientAbort),
        }
        upstream::discard(link, buffers);
        entry.finish(&owner.worker, &owner.connection);
    });
    response.map(|()| Answer::Own(Bytes::new(), session.clone()))
}

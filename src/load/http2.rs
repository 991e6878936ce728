//! HTTP/2 through hyper: one stream at a time per lane.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Stream;
use super::fault::{Fault, Kind};
use super::http1::{Answer, Reading};
use super::version::Names;

/// A connection that speaks HTTP/2. It ends when this is dropped.
#[derive(Debug)]
pub struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    bytes: Rc<Bytes2>,
    driver: tokio::task::AbortHandle,
}

/// Bytes on the wire (under TLS: inside it) since they were last asked for.
#[derive(Debug, Default)]
struct Bytes2 {
    read: Cell<u64>,
    written: Cell<u64>,
}

/// `SETTINGS_INITIAL_WINDOW_SIZE`: large bodies must measure the server, not our window updates.
const WINDOW: u32 = 4 * 1024 * 1024;

impl Http2 {
    /// The HTTP/2 preface and settings over `stream`.
    ///
    /// # Errors
    /// When the other side does not speak HTTP/2.
    pub async fn new(stream: Stream) -> Result<Self, Fault> {
        let bytes = Rc::new(Bytes2::default());
        let counted = Counted { stream, bytes: Rc::clone(&bytes) };
        let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(counted))
            .await
            .map_err(|e| fault(&e))?;
        // Its error is the error of the request it was for.
        let driver = tokio::task::spawn_local(async move { connection.await.ok() }).abort_handle();
        Ok(Self { sender, bytes, driver })
    }

    /// Sends one request and reads its answer. Gives the bytes that were written, too.
    ///
    /// # Errors
    /// When no complete answer came.
    pub async fn exchange(
        &mut self,
        used: bool,
        request: http::Request<Full<Bytes>>,
        timeout: Duration,
        reading: Reading<'_>,
        names: &RefCell<Names>,
    ) -> Result<(Answer, u64), Fault> {
        let talk = async {
            self.sender.ready().await.map_err(|e| Fault { stale: used, ..fault(&e) })?;
            // Canceled: the connection ended before the request was sent on it.
            let unsent = |e: hyper::Error| Fault { stale: used && (e.is_canceled() || e.is_closed()), ..fault(&e) };
            let response = self.sender.send_request(request).await.map_err(unsent)?;
            let (head, mut incoming) = response.into_parts();
            let mut body = Vec::new();
            while let Some(frame) = incoming.frame().await {
                if let (true, Ok(data)) = (reading.version_from.needs_body(), frame.map_err(|e| fault(&e))?.into_data())
                {
                    body.extend_from_slice(&data);
                }
            }
            Ok((head, body))
        };
        let (head, body) = tokio::time::timeout(timeout, talk)
            .await
            .unwrap_or_else(|_| Err(Fault::new(Kind::Timeout, format!("no answer within {timeout:?}"))))?;
        let status = head.status.as_u16();
        let header = |name: &str| head.headers.get(name).map(http::HeaderValue::as_bytes);
        let version = reading.version_from.read(status, header, &body, &mut names.borrow_mut());
        let instead = version.is_none().then(|| {
            let text = String::from_utf8_lossy(body.get(..body.len().min(300)).unwrap_or_default()).into_owned();
            format!("HTTP/2 {}\n{:?}\n\n{text}", head.status, head.headers)
        });
        let answer = Answer { status, version, reusable: true, received: self.bytes.read.take(), instead };
        Ok((answer, self.bytes.written.take()))
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn fault(error: &hyper::Error) -> Fault {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut words = error.to_string();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return Fault::talking(io);
        }
        words = inner.to_string();
        source = inner.source();
    }
    Fault::new(if error.is_closed() || error.is_canceled() { Kind::Closed } else { Kind::Protocol }, words)
}

#[derive(Clone, Debug)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

struct Counted {
    stream: Stream,
    bytes: Rc<Bytes2>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bytes.read.set(self.bytes.read.get() + (buf.filled().len() - before) as u64);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.bytes.written.set(self.bytes.written.get() + count as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

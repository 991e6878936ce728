//! The data path: listeners, TLS, request handling, upstream connections, errors to responses.
//!
//! A request's way: `accept` (limits, PROXY, TLS) -> `http1` or `http2` (codec) -> `request::plan` (who asks, who serves
//! it, the endpoint's head) -> `attempts` and `upstream` (a connection, retries) -> relayed back -> `journal` (metrics,
//! log line). `respond` is the one place where an error becomes a response. It reads snapshots and never writes them. It
//! does not know where configuration comes from (`control`) nor who watches it (`admin`).

mod accept;
mod attempts;
mod awaited;
mod buffer;
mod connection;
mod forward;
mod grpc;
mod http1;
mod http2;
mod journal;
mod linger;
mod multiplex;
mod request;
mod respond;
mod stream;
pub mod tls;
mod upstream;
mod watchdog;
mod wire;
pub mod worker;
pub mod workers;

//! The integration tests: one binary, one module per area, loopback only. Each drives the built `perch` where that
//! makes sense, on ports that the kernel picks, and waits for conditions instead of sleeping.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::float_cmp,
    clippy::large_futures,
    reason = "these are tests: a panic is how they fail, and clippy only knows the functions marked #[test]"
)]

mod admin;
mod backend;
mod binary_upgrade;
mod bodies;
mod client_certificates;
mod config;
mod demo;
mod docs;
mod drain;
mod endpoint_http2;
mod endpoint_tls;
mod faults;
mod fields;
mod floods;
mod frames;
#[allow(unreachable_pub, reason = "a kit that the modules share")]
mod front;
mod grpc;
mod health;
mod hostile;
mod http1;
mod http2;
mod kubernetes;
mod layers;
mod load;
mod memory;
mod process;
mod ramp;
mod records;
mod reload;
mod requests;
mod rollout;
mod slow;
mod split;
mod streams;
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a kit that the modules share: not each part is in use at each time"
)]
mod support;
mod tls;
mod upgrade;
mod waits;
mod websocket_http2;

//! perch: a TLS reverse proxy that splits the users of a service between its versions, and keeps them there.

pub mod access_log;
pub mod admin;
pub mod backend;
pub mod client;
pub mod cmd;
pub mod config;
pub mod control;
pub mod decide;
pub mod demo;
pub mod endpoint_tls;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod load;
pub mod metrics;
mod pem;
pub mod proxy;
pub mod readiness;
pub mod reason;
pub mod runtime;
pub mod state;

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

//! The data path: listeners, TLS, request handling, upstream connections, errors to responses.
//!
//! It reads snapshots and never writes them. It does not know where configuration comes from (`control`) nor who
//! watches it (`admin`).

pub mod tls;

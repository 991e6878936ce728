//! The decision core: which version and which endpoint a client gets, and why.
//!
//! Everything here is pure: no clock, lock, random source, socket or log. `now`, `roll` and `key` are arguments,
//! so the data path, `perch explain`, `perch check` and `perch load` run the same code and cannot disagree.
//! It does not know what a config file, a connection or a snapshot is.

pub mod choose;
pub mod client_address;
pub mod client_key;
pub mod explain;
pub mod fields;
pub mod guard;
pub mod handover;
pub mod places;
pub mod proxy_protocol;
pub mod ramp;
pub mod reweigh;
pub mod rollout;
pub mod route;
pub mod shedding;
pub mod slices;
pub mod slow_start;
pub mod split;
pub mod stats;
pub mod target;

pub use choose::{Choice, Forced, Hold, NoVersion, Policy, Recall, WhenEmpty, Why};
pub use client_key::{ClientKey, KeyPrefix};
pub use split::{Salt, Split, Weight};

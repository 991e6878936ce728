//! The guard of a ramp: whether the canary does worse than the stable side in the same window, from the proxy's own
//! counts, by a test that stays valid however often it looks.

pub mod outcomes;

pub use outcomes::Outcomes;

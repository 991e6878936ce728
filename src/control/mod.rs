//! What changes the picture: the single writer and the sources it listens to. Configuration and weights come through
//! [`Control`]; names are resolved, endpoints checked and files watched here. It never sees a request, and the data path
//! never sees it: they meet in `state`.

pub mod checks;
pub mod file;
pub mod kubernetes;
pub mod memory;
pub mod panic;
pub mod ramp;
pub mod replicas;
pub mod resolve;
pub mod store;
pub mod writer;

pub use writer::{Control, ControlError, Done, Writer};

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// `base`, up to a fifth more or less: so that many of a kind don't all come at once. `RandomState` has fresh keys each
/// time, which is random enough for that.
fn jittered(base: Duration) -> Duration {
    base.mul_f64(0.8 + 0.4 * random())
}

/// From 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "a spread, not a measure")]
fn random() -> f64 {
    random_number() as f64 / u64::MAX as f64
}

fn random_number() -> u64 {
    RandomState::new().hash_one(0)
}

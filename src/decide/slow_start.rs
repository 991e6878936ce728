//! Slow start: an endpoint that has just come (back) gets a part of its share, which grows until it is warm. Only clients
//! and requests that have no endpoint yet are held off, and only within their version.
//!
//! Whoever the choice of an endpoint ([`super::places`], [`super::choose::two_choices`]) gives to a cold one is let in or
//! goes on to the next best. Who is let in depends on the client and the endpoint alone, so that a growing part only adds
//! to them, and replicas disagree about no more than the difference between the parts that they see.

use super::choose::{fold, mix};
use super::client_key::ClientKey;

/// The part of an endpoint that is warm: all of its share.
pub const FULL: u64 = 1 << 16;

/// The part at the start, as Envoy's `min_weight_percent` has it: with nothing at all it would never warm up.
const LEAST: u64 = FULL / 10;

/// The part of its share that an endpoint gets which came `age` ago; grows evenly over `window`, both in milliseconds.
#[must_use]
pub const fn part(age: u64, window: u64) -> u64 {
    if age >= window { FULL } else { LEAST + (FULL - LEAST) * age / window }
}

/// Whether the endpoint with this seed lets somebody in at its part. `most` is the largest part of any usable endpoint of
/// the version: where all are cold, the warmest of them lets everyone in.
#[must_use]
pub const fn lets_in(who: u64, seed: u64, part: u64, most: u64) -> bool {
    // Not the bits that chose the endpoint: whoever got here has a high score with it.
    let draw = mix(mix(who ^ seed) ^ 0x9fb2_1c65_1e98_df25) >> 32;
    draw * most < part << 32
}

/// Who a client is to [`lets_in`].
#[must_use]
pub const fn who(key: ClientKey) -> u64 {
    mix(fold(key))
}

#[cfg(test)]
mod tests;

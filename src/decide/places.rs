//! The endpoint of a version for a client that is not pinned to one: a pure function of the client's key and the set of
//! endpoints, in which an endpoint that goes takes only its own clients along.
//!
//! Few endpoints: rendezvous over all of them, which is perfectly even. Beyond [`MOST_BY_RENDEZVOUS`]: multi-probe
//! consistent hashing (Appleton and O'Reilly 2015), whose cost does not grow with their number. Both answer alike on every
//! replica; a set that grows or shrinks across the bound chooses anew for clients that are not pinned.

use super::choose::{fold, mix};
use super::client_key::ClientKey;

/// Up to here each endpoint is scored for the client: 256 of them take about 0.6 us.
pub const MOST_BY_RENDEZVOUS: usize = 256;

/// Positions tried per client; the nearest endpoint after any of them wins. The most loaded endpoint gets about 5 % more
/// than its share with 21, whatever the number of endpoints.
const PROBES: u64 = 21;

/// Points per endpoint: with one, an endpoint just after another would get next to nothing; with these the least loaded of
/// a thousand gets about half of its share.
const POINTS: u64 = 4;

/// Points looked at after each probe for a usable endpoint, before all of them are scored.
const FAR: usize = 64;

/// The endpoints of a version as a choice sees them; built once per set.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Side by side: a choice among hundreds reads no endpoint but the best.
    seeds: Box<[u64]>,
    circle: Option<Circle>,
}

/// Points on the circle of all 64-bit numbers.
#[derive(Clone, Debug)]
struct Circle {
    points: Box<[u64]>,
    /// Whose point it is, an index into the seeds.
    owners: Box<[u32]>,
    /// For each value of a position's highest bits the first point at or after the lowest such position.
    starts: Box<[u32]>,
    shift: u32,
}

impl Places {
    /// `seeds` are one hash per endpoint ([`super::choose::endpoint_seed`]).
    #[must_use]
    pub fn new(seeds: impl IntoIterator<Item = u64>) -> Self {
        let seeds: Box<[u64]> = seeds.into_iter().collect();
        let circle = (seeds.len() > MOST_BY_RENDEZVOUS).then(|| Circle::new(&seeds));
        Self { seeds, circle }
    }

    /// The endpoint for a client, of those that are usable.
    #[must_use]
    pub fn choose(&self, key: ClientKey, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let client = mix(fold(key));
        match &self.circle {
            None => self.by_rendezvous(client, usable),
            // Nobody usable near any probe: the whole set is all but gone.
            Some(circle) => circle.nearest(client, &usable).or_else(|| self.by_rendezvous(client, usable)),
        }
    }

    fn by_rendezvous(&self, client: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best: Option<(u64, usize)> = None;
        for (i, seed) in self.seeds.iter().enumerate() {
            let score = mix(client ^ seed);
            // Whether it is usable is asked last and seldom: of n endpoints, some ln(n) are the best so far. Of two equal
            // ones the first wins.
            if best.is_none_or(|(highest, _)| score > highest) && usable(i) {
                best = Some((score, i));
            }
        }
        best.map(|(_, i)| i)
    }
}

impl Circle {
    fn new(seeds: &[u64]) -> Self {
        let mut all: Vec<(u64, u32)> = seeds
            .iter()
            .zip(0..)
            .flat_map(|(seed, owner)| (0..POINTS).map(move |n| (mix(seed ^ mix(n)), owner)))
            .collect();
        all.sort_unstable();
        let (points, owners): (Vec<u64>, Vec<u32>) = all.into_iter().unzip();
        let bits = points.len().next_power_of_two().trailing_zeros();
        let shift = u64::BITS - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut at = 0;
        for start in 0..1_u64 << bits {
            while points.get(at as usize).is_some_and(|p| *p < start << shift) {
                at += 1;
            }
            starts.push(at);
        }
        Self { points: points.into(), owners: owners.into(), starts: starts.into(), shift }
    }

    /// The usable endpoint with the smallest distance from any probe to one of its points.
    fn nearest(&self, client: u64, usable: &impl Fn(usize) -> bool) -> Option<usize> {
        let probes = || (0..PROBES).map(|n| mix(client.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        // Whether it is usable is asked of the nearest of all first; mostly it is.
        let nearest = probes()
            .map(|probe| {
                let at = self.next(probe);
                (self.distance(probe, at), at)
            })
            .min();
        if let Some(owner) = nearest.and_then(|(_, at)| self.owner(at)).filter(|owner| usable(*owner)) {
            return Some(owner);
        }
        // Else each probe goes on to the next usable one.
        let nearest = probes()
            .filter_map(|probe| {
                let first = self.next(probe);
                let mut after = (first..first + FAR).map(|at| at % self.points.len());
                let at = after.find(|at| self.owner(*at).is_some_and(usable))?;
                Some((self.distance(probe, at), at))
            })
            .min();
        nearest.and_then(|(_, at)| self.owner(at))
    }

    fn owner(&self, at: usize) -> Option<usize> {
        self.owners.get(at).map(|owner| *owner as usize)
    }

    /// The first point at or after a position, going round.
    fn next(&self, position: u64) -> usize {
        let (at, steps) = self.walk(position);
        debug_assert!(steps <= self.points.len(), "it ends at the last point");
        at
    }

    /// The same with the number of points passed on the way.
    fn walk(&self, position: u64) -> (usize, usize) {
        let bucket = usize::try_from(position >> self.shift).unwrap_or_default();
        let start = self.starts.get(bucket).map_or(0, |at| *at as usize);
        let rest = self.points.get(start..).unwrap_or_default();
        let steps = rest.iter().take_while(|point| **point < position).count();
        (if start + steps < self.points.len() { start + steps } else { 0 }, steps)
    }

    fn distance(&self, position: u64, at: usize) -> u64 {
        self.points.get(at).map_or(u64::MAX, |point| point.wrapping_sub(position))
    }
}

#[cfg(test)]
mod tests;

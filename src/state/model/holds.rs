//! From a rollout's drains to what the data path holds clients by: deadlines on the process's clock, and for clients that
//! nothing is remembered of the splits before the drains.
//!
//! A deadline is kept in wall time, so that it survives a restart. It is turned into process time once, when it is first
//! seen: a clock that is set afterwards moves no deadline.
//!
//! A process that started after a drain began never saw the clients that are to stay, and takes its earlier split's word
//! for it: for one idle timeout, since whoever was active before has come again by then, and is remembered. A process
//! that was there when it began knows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config::{self, Affinity};
use crate::decide::rollout::{Drain, Earlier, Rollout, Rollouts};
use crate::decide::{Hold, Recall, Salt, Split};
use crate::state::clock::{Moment, millis};
use crate::state::inheritance::Drains;

/// Deadlines, and what there was before this process.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// (service, version, deadline in wall time) -> deadline in process time.
    ends: HashMap<(String, String, u64), u64>,
    started: Moment,
    /// (service, version, end in wall time) of the earlier splits in the document that it started with: with these, no
    /// clock is asked.
    found: HashSet<(String, String, u64)>,
}

impl Deadlines {
    /// Of a process that starts now, with this document.
    pub(super) fn new(started: Moment, rollouts: &Rollouts) -> Self {
        let all = rollouts.services.iter().flat_map(|(name, rollout)| rollout.drains.iter().map(move |d| (name, d)));
        let found =
            all.flat_map(|(name, drain)| drain.earlier.iter().map(|e| key(name, &drain.version, e.until_millis)));
        Self { ends: HashMap::new(), started, found: found.collect() }
    }

    /// Of a process that takes over: it knows whom the first one knew.
    pub(super) fn inherit(started: Moment, rollouts: &Rollouts, drains: &Drains) -> Self {
        match drains.started {
            None => Self::new(started, rollouts),
            Some(started) => Self {
                ends: drains.ends.iter().cloned().collect(),
                started,
                found: drains.found.iter().cloned().collect(),
            },
        }
    }

    pub(super) fn leave(&self) -> Drains {
        Drains {
            started: Some(self.started),
            ends: self.ends.iter().map(|(key, end)| (key.clone(), *end)).collect(),
            found: self.found.iter().cloned().collect(),
        }
    }

    /// The document without drains that are over. Remembers the deadlines of the others, and no more.
    pub(super) fn without_expired(&mut self, rollouts: Arc<Rollouts>, now: Moment) -> Arc<Rollouts> {
        let mut known = std::mem::take(&mut self.ends);
        let mut next: Option<Rollouts> = None;
        for (service, rollout) in &rollouts.services {
            let mut is_over = |drain: &Drain| {
                let Some(until) = drain.until_millis else { return false };
                let key = key(service, &drain.version, until);
                let here =
                    known.remove(&key).unwrap_or_else(|| now.clock.saturating_add(until.saturating_sub(now.wall)));
                self.ends.insert(key, here);
                // Paused, the clock of a drain stands still.
                here <= now.clock && rollout.paused.is_none()
            };
            let (over, left): (Vec<_>, Vec<_>) = rollout.drains.iter().cloned().partition(|d| is_over(d));
            if !over.is_empty() {
                let next = next.get_or_insert_with(|| Rollouts::clone(&rollouts));
                next.services.insert(service.clone(), Arc::new(Rollout { drains: left, ..Rollout::clone(rollout) }));
            }
        }
        next.map_or(rollouts, Arc::new)
    }

    /// The holds of a service's versions, in their order.
    pub(super) fn holds<'a>(
        &self,
        service: &str,
        rollout: Option<&Rollout>,
        versions: impl Iterator<Item = &'a str>,
    ) -> Vec<Hold> {
        let hold = |version: &str| {
            let Some((rollout, drain)) =
                rollout.and_then(|r| Some((r, r.drains.iter().find(|d| d.version == version)?)))
            else {
                return Hold::None;
            };
            match drain.until_millis {
                Some(until) if rollout.paused.is_none() => {
                    self.ends.get(&key(service, version, until)).map_or(Hold::None, |deadline| Hold::Until(*deadline))
                }
                Some(_) | None => Hold::Frozen,
            }
        };
        versions.map(hold).collect()
    }

    /// The splits before the drains that began before this process, the earliest first: whoever was active all the time
    /// is where the first drain that it met has held it. `holds` are those of the versions.
    pub(super) fn recalls(
        &self,
        service: &config::Service,
        rollout: Option<&Rollout>,
        salt: Salt,
        holds: &[Hold],
    ) -> Vec<Recall> {
        let Affinity::ClientIp { timeout, .. } = service.affinity else { return Vec::new() };
        let until = self.started.clock.saturating_add(millis(timeout));
        let mut recalls = Vec::new();
        for drain in rollout.into_iter().flat_map(|r| &r.drains) {
            let at = service.versions.iter().position(|v| *v.name == *drain.version);
            let Some(version) = at.filter(|v| holds.get(*v).is_some_and(|hold| *hold != Hold::None)) else { continue };
            for earlier in drain.earlier.iter().filter(|e| self.is_from_before(&service.name, drain, e)) {
                let Some(there) = earlier.weights.keys().position(|name| *name == drain.version) else { continue };
                let earlier_split = Split::new(salt, earlier.weights.iter().map(|(name, weight)| (&**name, *weight)));
                recalls.push((earlier.until_millis, Recall { version, earlier: earlier_split, there, until }));
            }
        }
        recalls.sort_by_key(|(until, _)| *until);
        recalls.into_iter().map(|(_, recall)| recall).collect()
    }

    fn is_from_before(&self, service: &str, drain: &Drain, earlier: &Earlier) -> bool {
        // Of a document that came later, the clocks of two replicas say it. At the very start a file whose weights were
        // changed meanwhile takes over.
        earlier.until_millis <= self.started.wall
            || self.found.contains(&key(service, &drain.version, earlier.until_millis))
    }
}

fn key(service: &str, version: &str, at: u64) -> (String, String, u64) {
    (service.to_owned(), version.to_owned(), at)
}

/// The first deadline among `holds`.
pub(super) fn next_deadline(holds: &[Hold]) -> Option<u64> {
    let deadline = |hold: &Hold| match hold {
        Hold::Until(deadline) => Some(*deadline),
        Hold::None | Hold::Frozen => None,
    };
    holds.iter().filter_map(deadline).min()
}

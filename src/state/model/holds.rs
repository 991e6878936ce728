//! From a rollout's drains to what the data path holds clients by: deadlines on the process's clock.
//!
//! A deadline is kept in wall time, so that it survives a restart. It is turned into process time once, when it is first
//! seen: a clock that is set afterwards moves no deadline.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decide::Hold;
use crate::decide::rollout::{Drain, Rollout, Rollouts};
use crate::state::clock::Moment;

/// (service, version, deadline in wall time) -> deadline in process time.
#[derive(Debug, Default)]
pub(super) struct Deadlines(HashMap<(String, String, u64), u64>);

impl Deadlines {
    /// The document without drains that are over. Remembers the deadlines of the others, and no more.
    pub(super) fn without_expired(&mut self, rollouts: Arc<Rollouts>, now: Moment) -> Arc<Rollouts> {
        let mut known = std::mem::take(&mut self.0);
        let mut next: Option<Rollouts> = None;
        for (service, rollout) in &rollouts.services {
            let mut is_over = |drain: &Drain| {
                let Some(until) = drain.until_millis else { return false };
                let key = (service.clone(), drain.version.clone(), until);
                let here =
                    known.remove(&key).unwrap_or_else(|| now.clock.saturating_add(until.saturating_sub(now.wall)));
                self.0.insert(key, here);
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
                Some(until) if rollout.paused.is_none() => self
                    .0
                    .get(&(service.to_owned(), version.to_owned(), until))
                    .map_or(Hold::None, |deadline| Hold::Until(*deadline)),
                Some(_) | None => Hold::Frozen,
            }
        };
        versions.map(hold).collect()
    }
}

/// The first deadline among `holds`.
pub(super) fn next_deadline(holds: &[Hold]) -> Option<u64> {
    let deadline = |hold: &Hold| match hold {
        Hold::Until(deadline) => Some(*deadline),
        Hold::None | Hold::Frozen => None,
    };
    holds.iter().filter_map(deadline).min()
}

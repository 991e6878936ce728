//! Which endpoint is tried, and whether one more may be: retries inside the version, within the budget.
//!
//! A connect failure sent nothing, so any request may go elsewhere. A connection that ended before its answer is tried
//! again only for what may be sent twice. A kept connection that ended says nothing about its endpoint: it gets one
//! fresh connection to the same one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::request::Plan;
use super::upstream::{self, Link, Wanted};
use super::worker::Worker;
use crate::reason::Reason;
use crate::state::decision::another;
use crate::state::health::cap_allows;
use crate::state::snapshot::{Endpoint, Version};

/// Attempts of one request, the first included.
const MOST: u32 = 3;

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    worker: &'a Worker,
    plan: &'a Plan,
    endpoint: Arc<Endpoint>,
    /// Endpoints that failed; no allocation while none has.
    tried: Vec<Arc<Endpoint>>,
    count: u32,
    has_failed: bool,
    wants_fresh: bool,
    was_refused: bool,
    now: u64,
}

/// What is still here of a request of which some may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Some of its body went by.
    Partly,
    /// All that came so far; there is more to come.
    SoFar,
    /// All of it.
    Whole,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(worker: &'a Worker, plan: &'a Plan, started: Instant) -> Self {
        let now = worker.millis(started);
        plan.service.retry_budget.request(now);
        let endpoint = plan.decision.endpoint.clone();
        Self {
            worker,
            plan,
            endpoint,
            tried: Vec::new(),
            count: 0,
            has_failed: false,
            wants_fresh: false,
            was_refused: false,
            now,
        }
    }

    /// How many were begun.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// One of them failed through the endpoint's fault. A kept connection that ended says nothing about its endpoint.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    fn version(&self) -> Option<&'a Version> {
        self.plan.service.versions.get(self.plan.decision.version)
    }

    /// A connection to the endpoint whose turn it is, kept or new.
    pub(crate) async fn link(&mut self) -> Result<Link, Reason> {
        let version = self.version().ok_or(Reason::Internal)?;
        loop {
            self.make_room(version)?;
            self.count += 1;
            let (worker, timeouts) = (self.worker, &self.plan.service.config.timeouts);
            let wanted = Wanted { is_fresh: self.wants_fresh, is_upgrade: self.plan.is_upgrade };
            match upstream::link(worker, timeouts, version, &self.endpoint, wanted, self.now).await {
                Ok(link) => return Ok(link),
                Err(reason) => {
                    self.blame(version, reason);
                    self.elsewhere(version, reason)?;
                }
            }
        }
    }

    /// Leaves an endpoint that has as many requests as it may for another of its version.
    fn make_room(&mut self, version: &Version) -> Result<(), Reason> {
        if !self.is_full(&self.endpoint) {
            return Ok(());
        }
        let may = |e: &Arc<Endpoint>| !self.is_full(e) && !self.was_tried(e);
        self.endpoint = another(version, may, self.worker.next_roll(), self.now).ok_or(Reason::Overflow)?;
        self.wants_fresh = false;
        Ok(())
    }

    fn is_full(&self, endpoint: &Endpoint) -> bool {
        let most = self.plan.service.config.limits.requests_per_endpoint;
        most > 0 && endpoint.in_flight.load(Ordering::Relaxed) >= most
    }

    fn was_tried(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.tried.iter().any(|t| Arc::ptr_eq(t, endpoint))
    }

    /// The answer has begun.
    pub(crate) fn succeeded(&self, link: &Link) {
        link.endpoint.health.succeeded();
    }

    /// The attempt failed before an answer. `Ok`: there is another one, ask for its link.
    ///
    /// # Errors
    /// With the reason that the client gets, when there is none.
    pub(crate) fn failed(&mut self, link: Link, reason: Reason, kept: Kept) -> Result<(), Reason> {
        let was_reused = link.is_reused;
        upstream::discard(link, &self.worker.buffers);
        let version = self.version().ok_or(Reason::Internal)?;
        if reason == Reason::StreamRefused {
            return self.refused(version, was_reused, kept);
        }
        let may_repeat = reason == Reason::Reset && self.plan.is_idempotent && kept == Kept::Whole;
        if was_reused && reason == Reason::Reset {
            version.metrics.upstream_failure(Reason::ResetOnReuse);
            if !may_repeat {
                return Err(Reason::ResetOnReuse);
            }
            version.metrics.retry();
            self.wants_fresh = true;
            return Ok(());
        }
        self.blame(version, reason);
        if may_repeat { self.elsewhere(version, reason) } else { Err(reason) }
    }

    /// The endpoint did nothing with it: any request may be sent again, to the same endpoint, whose connection that was
    /// told to go away takes no more. A connection that goes away refuses many at once, so the first time is free.
    fn refused(&mut self, version: &Version, was_reused: bool, kept: Kept) -> Result<(), Reason> {
        version.metrics.upstream_failure(Reason::StreamRefused);
        let is_free = was_reused && !self.was_refused;
        self.was_refused = true;
        if kept == Kept::Partly || self.count >= MOST {
            return Err(Reason::StreamRefused);
        }
        if !is_free && !self.plan.service.retry_budget.take(self.now) {
            return Err(Reason::RetryBudget);
        }
        version.metrics.retry();
        Ok(())
    }

    /// Counts a failure against the endpoint.
    fn blame(&mut self, version: &Version, reason: Reason) {
        version.metrics.upstream_failure(reason);
        // Our own lack of ports or descriptors is not the endpoint's fault.
        if reason == Reason::LocalPorts {
            return;
        }
        self.has_failed = true;
        let rules = &self.plan.service.config.ejection;
        let now = self.worker.now_millis();
        let cap = || cap_allows(version.endpoints.iter().map(|e| &e.health), now, rules.max_percent);
        if self.endpoint.health.failed(now, rules, cap) {
            tracing::warn!(
                service = %self.plan.service.name, version = %version.name, endpoint = %self.endpoint.name, %reason,
                "Ejected endpoint."
            );
        }
    }

    fn elsewhere(&mut self, version: &Version, reason: Reason) -> Result<(), Reason> {
        if self.count >= MOST {
            return Err(reason);
        }
        self.tried.push(self.endpoint.clone());
        let may = |e: &Arc<Endpoint>| !self.was_tried(e);
        let Some(next) = another(version, may, self.worker.next_roll(), self.now) else { return Err(reason) };
        if !self.plan.service.retry_budget.take(self.now) {
            return Err(Reason::RetryBudget);
        }
        version.metrics.retry();
        self.endpoint = next;
        self.wants_fresh = false;
        Ok(())
    }
}

//! One leader among the replicas, by a Lease as Kubernetes' own controllers hold one: taken when nobody holds it or its
//! holder was silent for as long as it said, renewed often, given back at the end.
//!
//! Nobody's wall clock decides: a holder is silent when the Lease did not change for that long on *our* clock. A leader
//! that cannot renew stops leading well before another may take over. Two leaders for a moment would harm nothing: what
//! they write is compare-and-set.

#![expect(clippy::indexing_slicing, reason = "of JSON: what is not there reads as null")]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::super::client::{Connector, Trouble};
use super::session::{Session, is_conflict};
use crate::control::replicas::Replicas;
use crate::metrics;

const GROUP: &str = "/apis/coordination.k8s.io/v1";
const KIND: &str = "leases";

/// Attempts per duration of the Lease. One attempt takes that long at most, too.
const ATTEMPTS: u32 = 6;

/// What takes part in the election.
#[derive(Debug)]
pub(super) struct Elector {
    session: Session,
    /// The Lease's.
    name: String,
    /// Of this process, not only of the pod: one that started anew must not take itself for the one before.
    identity: String,
    duration: Duration,
    leads: watch::Sender<bool>,
    replicas: Replicas,
    /// The Lease as it last changed, and when that was.
    seen: Option<(Value, Instant)>,
    renewed: Instant,
    is_troubled: bool,
}

impl Elector {
    pub(super) fn new(
        connector: Connector,
        (name, duration): (String, Duration),
        identity: String,
        leads: watch::Sender<bool>,
        replicas: Replicas,
    ) -> Self {
        let session = Session::new(connector, duration / ATTEMPTS);
        let (seen, renewed, is_troubled) = (None, Instant::now(), false);
        Self { session, name, identity, duration, leads, replicas, seen, renewed, is_troubled }
    }

    /// Until `stop`; then the Lease is given back.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.lead(false);
        let mut attempt = interval(self.duration / ATTEMPTS);
        attempt.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = attempt.tick() => self.attempt().await,
            }
        }
        if *self.leads.borrow() {
            self.lead(false);
            let patch = json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}});
            if let Err(trouble) = self.session.patch(GROUP, KIND, &self.name, &patch).await {
                debug!(error = trouble.message, "Could not give the Lease back; it expires.");
            }
        }
    }

    async fn attempt(&mut self) {
        match self.hold().await {
            Ok(holds) => {
                if holds {
                    self.renewed = Instant::now();
                }
                self.is_troubled = false;
                self.lead(holds);
            }
            // Another was faster.
            Err(trouble) if is_conflict(&trouble) => self.lead(false),
            Err(trouble) => {
                metrics::kubernetes_sync_error(trouble.reason);
                if !self.is_troubled {
                    let (lease, reason) = (&self.name, trouble.reason.as_str());
                    warn!(
                        lease,
                        reason,
                        error = trouble.message,
                        "Cannot read or renew the Lease; no ramps run here without it. It needs get and patch on leases."
                    );
                    self.is_troubled = true;
                }
                // An attempt and its pause later it is still ours.
                if self.renewed.elapsed() >= self.duration / 2 {
                    self.lead(false);
                }
            }
        }
    }

    fn lead(&self, leads: bool) {
        let changed = self.leads.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        if changed {
            info!(leads, lease = self.name, "This replica runs the ramps: {leads}.");
        }
        self.replicas.lead(leads);
        metrics::kubernetes_leader(leads);
    }

    /// Takes or renews the Lease if that may be. Whether it is ours now.
    async fn hold(&mut self) -> Result<bool, Trouble> {
        let began = Instant::now();
        let Some(lease) = self.session.get(GROUP, KIND, &self.name).await? else {
            let new = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name},
                "spec": self.spec(0, true),
            });
            self.session.create(GROUP, KIND, &new).await?;
            return Ok(true);
        };
        let spec = &lease["spec"];
        if self.seen.as_ref().is_none_or(|(before, _)| before != spec) {
            self.seen = Some((spec.clone(), began));
        }
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        let is_ours = holder == self.identity;
        if !is_ours && !holder.is_empty() {
            let of_holder = spec["leaseDurationSeconds"].as_u64().map_or(self.duration, Duration::from_secs);
            let silent = self.seen.as_ref().map(|(_, since)| since.elapsed()).unwrap_or_default();
            if silent < of_holder {
                return Ok(false);
            }
        }
        let transitions = spec["leaseTransitions"].as_u64().unwrap_or_default();
        let patch = json!({
            "metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]},
            "spec": self.spec(transitions + u64::from(!is_ours), !is_ours),
        });
        self.session.patch(GROUP, KIND, &self.name, &patch).await?;
        Ok(true)
    }

    fn spec(&self, transitions: u64, is_new: bool) -> Value {
        let now = now();
        let mut spec = json!({
            "holderIdentity": self.identity,
            // The API takes whole seconds.
            "leaseDurationSeconds": self.duration.as_secs().max(1),
            "renewTime": now,
            "leaseTransitions": transitions,
        });
        if is_new {
            spec["acquireTime"] = now.into();
        }
        spec
    }
}

/// The API's `MicroTime`. For people: nothing is decided by it.
fn now() -> String {
    let at = time::OffsetDateTime::now_utc();
    let (year, month, day) = at.to_calendar_date();
    format!(
        "{year:04}-{:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        u8::from(month),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}

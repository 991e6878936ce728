//! Follows the health of the endpoints of every service that has an active check, and has its versions panic or calm down
//! (`state::panic`). Changes are logged; the metric reads the version. Without checks too few can't be healthy: ejection
//! has a cap of its own.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::writer::Control;
use crate::state::clock::Clock;
use crate::state::panic::look;
use crate::state::snapshot::Service;

/// A tenth of the usual check interval; looking at 10,000 endpoints takes some 20 us.
const TICK: Duration = Duration::from_millis(100);

/// Ends with the writer.
pub async fn run(control: Control, clock: Clock) {
    let mut generations = control.generations();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let snapshot = control.snapshot();
        for service in &snapshot.services {
            look_and_tell(service, clock.now());
        }
        let has_checks = snapshot.services.iter().any(|service| service.config.health.is_some());
        drop(snapshot);
        let changed = tokio::select! {
            changed = generations.changed() => changed,
            _ = tick.tick(), if has_checks => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

fn look_and_tell(service: &Service, now: u64) {
    for change in look(service, now) {
        let Some(version) = service.versions.get(change.version) else { continue };
        let (service, version, healthy, of) = (&service.name, &version.name, change.healthy, change.of);
        if change.is_panicking {
            warn!(%service, %version, healthy, of, "Too few endpoints are healthy to believe the checks: all are used.");
        } else {
            info!(%service, %version, healthy, of, "The checks are believed again.");
        }
    }
}

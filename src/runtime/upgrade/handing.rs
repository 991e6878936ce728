//! The upgrade as the supervisor does it: hands over while everything goes on, then leaves.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{error, info, warn};

use super::successor::{Failed, Successor, end, reload};
use super::{Hello, Phase};
use crate::admin;
use crate::runtime::given::Place;
use crate::runtime::supervisor::Supervisor;
use crate::runtime::{Drained, Order, notify};
use crate::state::inheritance::leave_pins;

/// Between what the new perch hears of this one's counters: what a scrape may miss of those that drain.
const TELL: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Has another perch take over. `None`: it did not, and this one goes on. With the orders that came meanwhile.
    pub(in crate::runtime) async fn upgrade(
        &self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> (Option<Successor>, Vec<Order>) {
        let mut meanwhile = Vec::new();
        if std::process::id() == 1 {
            error!("This perch is process 1, and its container ends with it: replace the container (or Pod) instead.");
            return (None, meanwhile);
        }
        let (successor, child) = match Successor::start() {
            Ok(started) => started,
            Err(failed) => {
                error!(%failed, "No other perch takes over; this one goes on.");
                return (None, meanwhile);
            }
        };
        info!(pid = child.id(), "Started another perch to take over.");
        let mut handing = std::pin::pin!(self.hand_over(successor));
        let done = loop {
            tokio::select! {
                // Once it serves, it is not ended any more.
                biased;
                done = &mut handing => break done,
                order = orders.recv() => match order {
                    Some(Order::Upgrade) => warn!("An upgrade is under way already."),
                    Some(Order::Reload) => meanwhile.push(Order::Reload),
                    Some(drain @ Order::Drain { .. }) => {
                        meanwhile.push(drain);
                        break Err(Failed::Unwanted);
                    }
                    None => break Err(Failed::Unwanted),
                },
            }
        };
        match done {
            Ok(successor) => {
                if meanwhile.iter().any(|order| matches!(order, Order::Reload)) {
                    reload(&successor);
                }
                (Some(successor), meanwhile)
            }
            Err(failed) => {
                let status = end(child, &failed).await.map(tracing::field::display);
                error!(%failed, status, "No other perch takes over; this one goes on.");
                (None, meanwhile)
            }
        }
    }

    async fn hand_over(&self, successor: Successor) -> Result<Successor, Failed> {
        let (mut places, mut sockets) = (Vec::new(), Vec::new());
        for (name, socket) in self.workers.share().await {
            let Some(open) = self.listeners.get(&name) else { continue };
            places.push(Place { listener: Some(name.to_string()), asked: open.asked });
            sockets.push(socket);
        }
        if let Some(socket) = &self.admin_socket {
            places.push(Place { listener: None, asked: self.admin_asked });
            sockets.push(OwnedFd::from(socket.try_clone().map_err(Failed::Line)?));
        }
        let hello = Hello::new(self.shared.clock.now(), places);
        let successor = blocking(move || successor.prepare(&hello, sockets)).await?;
        let still = self.control.stand_still().await?;
        let (inheritance, snapshot) = (still.inheritance.clone(), still.snapshot.clone());
        let state = self.state.clone();
        let successor = blocking(move || {
            let pins = leave_pins(&state.pins, &snapshot);
            successor.serve(&inheritance, &pins, &admin::metrics_text(&state))
        })
        .await?;
        still.keep();
        Ok(successor)
    }

    /// Another perch accepts now: this one drains, tells what it still counts, and ends.
    pub(in crate::runtime) async fn leave(mut self, successor: Successor) -> Drained {
        info!(pid = successor.pid, "Another perch has taken over; draining.");
        notify::tell(&format!("MAINPID={}", successor.pid));
        // A socket that nobody here accepts from must not stay open here.
        self.admin_socket = None;
        self.stop.cancel();
        self.phase.send_replace(Phase::TakenOver);
        let rules = self.control.snapshot().config.drain;
        let until = Instant::now() + rules.deadline;
        let mut seconds = interval(TELL);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drained = {
            let mut draining = std::pin::pin!(self.drain(Duration::ZERO, rules.spread));
            loop {
                tokio::select! {
                    drained = &mut draining => break drained,
                    _ = seconds.tick() => self.tell(&successor).await,
                }
            }
        };
        // The one before this one may still be counting.
        timeout_at(until, self.before_is_gone.cancelled()).await.ok();
        self.access_log.flush(Duration::from_secs(1));
        self.tell(&successor).await;
        drained
    }

    /// What `/metrics` says now.
    async fn tell(&self, successor: &Successor) {
        let (state, successor) = (self.state.clone(), successor.again());
        // It may have ended, or be too busy to listen: then these counts are lost, and nothing else.
        blocking(move || Ok(successor?.metrics(&admin::metrics_text(&state))?)).await.ok();
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failed> + Send + 'static) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Failed::Panicked))
}

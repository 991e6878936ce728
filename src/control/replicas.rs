//! The replicas of one installation, as each says of itself: for `status`, the page, and whoever waits until a change is
//! in force everywhere. A replica alone knows only itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// One that said nothing for so long is not shown any more.
const FORGET: Duration = Duration::from_secs(60);

/// All that are known. Cheap to clone; all clones are one. The lock is held for a copy only, never over a wait.
#[derive(Clone, Debug, Default)]
pub struct Replicas(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    own: String,
    leads: bool,
    others: BTreeMap<String, (Report, Instant)>,
}

/// What a replica says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub generation: u64,
    pub sequence: u64,
    pub is_leader: bool,
    /// Differs each time, so that a report that says the same is a sign of life all the same.
    pub beat: u64,
}

/// A replica as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    pub name: String,
    pub generation: u64,
    pub sequence: u64,
    pub is_leader: bool,
    pub seen_seconds: f64,
}

impl Replicas {
    /// Who this replica is.
    pub fn call(&self, own: &str) {
        own.clone_into(&mut self.lock().own);
    }

    /// Whether this replica runs the ramps.
    pub fn lead(&self, leads: bool) {
        self.lock().leads = leads;
    }

    /// What the others said last.
    pub fn hear(&self, reports: BTreeMap<String, Report>) {
        let mut known = self.lock();
        let now = Instant::now();
        let heard = |name: &str, report: Report, before: Option<&(Report, Instant)>| {
            let seen = before.filter(|(b, _)| *b == report).map_or(now, |(_, seen)| *seen);
            (name.to_owned(), (report, seen))
        };
        let own = known.own.clone();
        let others = reports.into_iter().filter(|(name, _)| *name != own);
        known.others = others.map(|(name, report)| heard(&name, report, known.others.get(&name))).collect();
    }

    /// Others that said nothing for so long.
    #[must_use]
    pub fn silent_for(&self, long: Duration) -> Vec<String> {
        let known = self.lock();
        let silent = known.others.iter().filter(|(_, (_, seen))| seen.elapsed() >= long);
        silent.map(|(name, _)| name.clone()).collect()
    }

    /// All of them, this one first. `generation` and `sequence` are its own.
    #[must_use]
    pub fn show(&self, generation: u64, sequence: u64) -> Vec<Replica> {
        let known = self.lock();
        // Without anybody to share with, it leads itself.
        let is_alone = known.own.is_empty();
        let name = if is_alone { "this one".to_owned() } else { known.own.clone() };
        let own = Replica { name, generation, sequence, is_leader: is_alone || known.leads, seen_seconds: 0.0 };
        let others =
            known.others.iter().filter(|(_, (_, seen))| seen.elapsed() < FORGET).map(|(name, (report, seen))| {
                let Report { generation, sequence, is_leader, .. } = *report;
                Replica {
                    name: name.clone(),
                    generation,
                    sequence,
                    is_leader,
                    seen_seconds: seen.elapsed().as_secs_f64(),
                }
            });
        std::iter::once(own).chain(others).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sequence: u64, beat: u64) -> Report {
        Report { generation: 1, sequence, is_leader: false, beat }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_seen_when_it_says_something_new_and_forgotten_when_not() {
        let replicas = Replicas::default();
        replicas.call("a");
        let hear = |beat| replicas.hear([("a".into(), report(9, 9)), ("b".into(), report(2, beat))].into());

        hear(1);
        tokio::time::advance(Duration::from_secs(10)).await;
        hear(1);
        let silent: Vec<f64> = replicas.show(7, 3).iter().map(|r| r.seen_seconds).collect();
        hear(2);
        let seen = replicas.show(7, 3);
        tokio::time::advance(FORGET).await;

        assert_eq!(silent, [0.0, 10.0]);
        assert_eq!((seen[1].name.as_str(), seen[1].sequence), ("b", 2));
        assert!(seen[1].seen_seconds < 1.0);
        assert_eq!((seen[0].name.as_str(), seen[0].generation, seen[0].sequence), ("a", 7, 3), "itself, as it is");
        assert_eq!(replicas.show(7, 3).len(), 1);
        assert_eq!(replicas.silent_for(FORGET), ["b"]);
    }

    #[test]
    fn alone_it_leads() {
        assert!(Replicas::default().show(1, 1)[0].is_leader);
    }
}

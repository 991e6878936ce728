//! Endpoints given by name: looked up in the background, never in a request. Every five seconds, spread out; later and
//! later while a lookup fails. A failure or an empty answer keeps the last good addresses (reliability.md G16).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::writer::Control;
use super::{jittered, random};
use crate::state::model::{HostPort, Names};

/// From one answer to the next lookup. A TTL isn't told by the system's resolver.
const INTERVAL: Duration = Duration::from_secs(5);

/// The longest pause while lookups fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The system's resolver tries for 5 s per server by default (resolv.conf(5)).
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Lookups at once: each may hold a thread.
const AT_ONCE: usize = 16;

/// One lookup.
async fn look_up((host, port): &HostPort) -> Result<Vec<SocketAddr>, String> {
    match timeout(LOOKUP_TIMEOUT, lookup_host((host.as_str(), *port))).await {
        Err(_) => Err(format!("no answer in {} s", LOOKUP_TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(addresses)) => match addresses.collect::<Vec<_>>() {
            none if none.is_empty() => Err("the answer has no address".to_owned()),
            some => Ok(some),
        },
    }
}

/// Looks names up all at once, for at most `deadline`; what has no answer by then is left out.
pub async fn first(names: Vec<HostPort>, deadline: Duration) -> Names {
    let mut lookups: JoinSet<(HostPort, Result<Vec<SocketAddr>, String>)> = JoinSet::new();
    let end = Instant::now() + deadline;
    let mut waiting = names.into_iter();
    let mut found = Names::new();
    loop {
        while lookups.len() < AT_ONCE
            && let Some(name) = waiting.next()
        {
            lookups.spawn(async move { (name.clone(), look_up(&name).await) });
        }
        tokio::select! {
            done = lookups.join_next() => match done {
                Some(Ok((name, Ok(addresses)))) => {
                    found.insert(name, addresses);
                }
                Some(Ok(((host, port), Err(error)))) => {
                    warn!(host, port, error, "Could not resolve an endpoint's name; trying again in the background.");
                }
                // Nobody aborts them, and one that panicked has no answer.
                Some(Err(_)) => {}
                None => return found,
            },
            () = sleep_until(end) => {
                warn!(unanswered = lookups.len() + waiting.len(), "Going on without the addresses of some endpoints.");
                return found;
            }
        }
    }
}

/// A name between lookups.
#[derive(Debug)]
struct Watched {
    due: Instant,
    failures: u32,
    is_asked: bool,
}

/// Looks up the names of the current snapshot, for ever.
pub async fn run(control: Control) {
    let mut generations = control.generations();
    let mut names: HashMap<HostPort, Watched> = HashMap::new();
    let mut lookups: JoinSet<(HostPort, Result<Vec<SocketAddr>, String>)> = JoinSet::new();
    follow(&control, &mut names);
    loop {
        let now = Instant::now();
        for (name, watched) in &mut names {
            if lookups.len() < AT_ONCE && watched.due <= now && !watched.is_asked {
                watched.is_asked = true;
                let name = name.clone();
                lookups.spawn(async move { (name.clone(), look_up(&name).await) });
            }
        }
        // With all places taken, the next answer wakes.
        let has_room = lookups.len() < AT_ONCE;
        let due = names.values().filter(|w| has_room && !w.is_asked).map(|w| w.due).min();
        tokio::select! {
            Some(Ok((name, answer))) = lookups.join_next() => {
                let Some(watched) = names.get_mut(&name) else { continue };
                watched.is_asked = false;
                let (host, port) = (&name.0, name.1);
                match answer {
                    Ok(addresses) => {
                        if watched.failures > 0 {
                            info!(host, port, "An endpoint's name resolves again.");
                        }
                        watched.failures = 0;
                        if control.resolved(name, addresses).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // Once, not with each try.
                        if watched.failures == 0 {
                            warn!(host, port, error, "Could not resolve an endpoint's name; keeping its last addresses.");
                        }
                        watched.failures = watched.failures.saturating_add(1);
                    }
                }
                watched.due = Instant::now() + pause(watched.failures);
            }
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            changed = generations.changed() => match changed {
                Ok(()) => follow(&control, &mut names),
                Err(_) => return,
            },
        }
    }
}

/// The names of the current snapshot, and no others. New ones are due within a second.
fn follow(control: &Control, names: &mut HashMap<HostPort, Watched>) {
    let mut before = std::mem::take(names);
    for name in control.snapshot().config.host_ports() {
        let fresh =
            || Watched { due: Instant::now() + Duration::from_secs(1).mul_f64(random()), failures: 0, is_asked: false };
        let watched = before.remove(&name);
        names.entry(name).or_insert_with(|| watched.unwrap_or_else(fresh));
    }
}

fn pause(failures: u32) -> Duration {
    let factor = 2u32.saturating_pow(failures.min(10));
    jittered(INTERVAL.saturating_mul(factor).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_with_its_port() {
        let names = first(vec![("localhost".to_owned(), 81)], Duration::from_secs(30)).await;

        let addresses = &names[&("localhost".to_owned(), 81)];
        assert!(addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 81) && !addresses.is_empty());
    }

    #[tokio::test]
    async fn a_name_without_an_answer_is_left_out() {
        // RFC 6761: never exists.
        let names = first(vec![("perch.invalid".to_owned(), 80)], Duration::from_secs(1)).await;

        assert!(names.is_empty());
    }

    #[test]
    fn pauses_grow_while_lookups_fail_up_to_a_minute() {
        for (failures, seconds) in [(0, 5.0), (1, 10.0), (3, 40.0), (4, 60.0), (1_000, 60.0)] {
            let pause = pause(failures).as_secs_f64();
            assert!((seconds * 0.79..=seconds * 1.21).contains(&pause), "{failures}: {pause}");
        }
    }
}

//! `--wait`: until a change is in force on every replica, or until a guarded ramp has ended.
//!
//! Who waits for hours must survive what perch survives: a perch that does not answer is asked again for a while, and
//! after a restart its generations begin anew, while the numbers of decisions (`sequence`) go on.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

use super::verb::span;
use crate::client::{Client, ClientError, encode};

/// A change is in force within milliseconds, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// A perch that is gone for longer is not restarting.
const LOST: Duration = Duration::from_secs(120);

/// A replica that starts reads what was decided within seconds; one that still knows less has nowhere to read it.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// How things are.
#[derive(Debug, Deserialize)]
struct Look {
    generation: u64,
    #[serde(default)]
    replicas: Vec<Replica>,
    /// Of the service, asked for after the rest.
    #[serde(skip)]
    rollout: Rollout,
}

#[derive(Debug, Deserialize)]
struct Replica {
    name: String,
    sequence: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Rollout {
    sequence: u64,
    ramp: Option<Ramp>,
}

#[derive(Debug, Deserialize)]
struct Ramp {
    state: String,
    step: usize,
    steps: Vec<Value>,
    #[serde(default)]
    why: String,
}

impl Look {
    fn new(client: &Client, service: &str) -> Result<Self, ClientError> {
        #[derive(Deserialize)]
        struct One {
            rollout: Rollout,
        }
        let all: Self = client.get("/api/v1/services")?;
        let one: One = client.get(&format!("/api/v1/services/{}", encode(service)))?;
        Ok(Self { rollout: one.rollout, ..all })
    }

    /// Replicas that do not have yet what the asked one has.
    fn behind(&self) -> Vec<&str> {
        self.replicas.iter().filter(|r| r.sequence < self.rollout.sequence).map(|r| &*r.name).collect()
    }
}

impl Ramp {
    /// For a person.
    fn text(&self) -> String {
        let (step, all) = ((self.step + 1).min(self.steps.len()), self.steps.len());
        let why = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        format!("step {step} of {all}: {}{why}", self.state)
    }
}

/// Until every replica that is known has what this generation of the asked one has.
pub(super) fn until_in_force(
    client: &Client,
    service: &str,
    generation: u64,
    timeout: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let (start, patience) = (Instant::now(), timeout.unwrap_or(PATIENCE));
    loop {
        let look = Look::new(client, service)?;
        let behind = look.behind();
        if look.generation >= generation && behind.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        if start.elapsed() >= patience {
            let behind = if behind.is_empty() { "this one".to_owned() } else { behind.join(", ") };
            bail!(
                "not in force everywhere after {patience:.0?}, behind: {behind}; `perch status {service}` shows the replicas"
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Until the ramp that began with this generation is done (exit code 0) or aborted (1), and every replica knows it.
/// Says what happens on standard error.
pub(super) fn until_ramp_ends(
    client: &Client,
    service: &str,
    generation: u64,
    timeout: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    // The decision with which it began, once that is in force.
    let mut begun: Option<u64> = None;
    let mut said = None;
    let mut lost: Option<Instant> = None;
    let mut forgotten: Option<Instant> = None;
    let mut last = "not in force yet".to_owned();
    loop {
        match Look::new(client, service) {
            Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
            Err(error) => {
                let since = *lost.get_or_insert_with(|| {
                    eprintln!("{error}; asking again");
                    Instant::now()
                });
                if since.elapsed() >= LOST {
                    return Err(error.into());
                }
            }
            Ok(look) => {
                if lost.take().is_some() {
                    eprintln!("perch answers again");
                }
                if look.generation >= generation {
                    begun.get_or_insert(look.rollout.sequence);
                }
                let is_current = begun.is_some_and(|begun| look.rollout.sequence >= begun);
                if is_current && look.behind().is_empty() {
                    let Some(ramp) = &look.rollout.ramp else {
                        bail!("the ramp of {service} is gone; `perch history {service}` shows what was done");
                    };
                    last = ramp.text();
                    // Once for each state of each step: the reasons to hold on have numbers that change all the time.
                    let now = Some((ramp.step, ramp.state.clone()));
                    if said != now {
                        eprintln!("{last}");
                        said = now;
                    }
                    match &*ramp.state {
                        "done" => return Ok(ExitCode::SUCCESS),
                        "aborted" => return Ok(ExitCode::FAILURE),
                        _ => {}
                    }
                    forgotten = None;
                } else if begun.is_some()
                    && !is_current
                    && forgotten.get_or_insert_with(Instant::now).elapsed() >= FORGOTTEN
                {
                    bail!("the ramp of {service} is gone: perch was restarted, and keeps nothing without a stateDir");
                }
            }
        }
        if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            let (waited, last) = (span(start.elapsed().as_secs()), &last);
            bail!("the ramp of {service} has not ended after {waited} ({last}); it goes on without being waited for");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

//! `perch load`: prove the split.
//!
//! N clients, each with an address of its own, ask a server; responses are grouped by version; the shares are judged
//! with an interval and an exact test, and a client that sees two versions is a violation. It works against any HTTP
//! server and knows perch only where it ramps a weight through the admin interface.
//!
//! `plan` is what to do, `engine` does it, `tally` counts, `outcome` is the result, `verdict` and `ramp` judge it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub mod admin;
pub mod connect;
pub mod engine;
pub mod fault;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod lane;
pub mod outcome;
pub mod pacer;
pub mod page;
pub mod plan;
pub mod progress;
pub mod ramp;
pub mod table;
pub mod tally;
pub mod tls;
pub mod verdict;
pub mod version;

use engine::Shared;
use outcome::{Counts, Outcome, Run, Step, Verdict};
use plan::Plan;
use progress::{Length, Progress};
use tally::{Client, Tally};
use verdict::{Expectation, Finding, Rules};
use version::{AllNames, VersionId};

/// A plan and what must come of it.
#[derive(Debug)]
pub struct Job {
    pub plan: Arc<Plan>,
    pub rules: Rules,
    pub ramp: Option<Ramp>,
    /// No progress on stderr.
    pub quiet: bool,
}

/// Weights to go through.
#[derive(Clone, Debug)]
pub struct Ramp {
    pub admin: admin::Admin,
    pub version: String,
    pub percents: Vec<f64>,
}

/// What keeps a run from being one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The very first request already went wrong.
    #[error("{0}")]
    Probe(fault::Fault),
    #[error("{0}")]
    Admin(String),
    #[error("threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// Runs a job to its end, or to Ctrl-C, or to a limit of this machine.
///
/// # Errors
/// When nothing could be measured at all.
pub fn run(job: &Job) -> Result<Outcome, Error> {
    engine::probe(&job.plan).map_err(Error::Probe)?;
    let names = AllNames::default();
    let watched = job.ramp.as_ref().map(|r| &r.version).or(job.rules.expect.first().map(|e| &e.version)).cloned();
    // The expected versions are in the table even when no response comes from them.
    let expected: Vec<Option<VersionId>> = job.rules.expect.iter().map(|e| names.id(&e.version)).collect();
    debug_assert!(expected.iter().all(Option::is_some), "a handful of names fits");
    let watched_id = watched.as_ref().and_then(|name| names.id(name));
    let shared = Arc::new(Shared::new(names, watched_id));
    stop_on_signal(&shared)?;
    let steps = job.ramp.as_ref().map_or(1, |r| r.percents.len());
    let length = match job.plan.duration {
        Some(time) => Length::Time(time * u32::try_from(steps).unwrap_or(u32::MAX)),
        None => Length::Requests(u64::from(job.plan.clients) * u64::from(job.plan.requests) * steps as u64),
    };
    let progress = Progress::new(Arc::clone(&shared), length, watched, job.quiet);
    let mut record = Record::new(&job.plan);
    let mut interruption = None;
    match (&job.ramp, watched_id) {
        (Some(ramp), Some(version)) => interruption = climb(job, ramp, version, &shared, &mut record)?,
        _ => record.step(job, &shared, None)?,
    }
    drop(progress);
    if let Some(fault) = shared.fatal() {
        interruption = Some(format!("{fault}; {}", fault.kind.fix().unwrap_or_default()));
    } else if shared.stopped() && interruption.is_none() {
        interruption = Some("stopped by a signal".to_owned());
    }
    Ok(record.outcome(job, &shared, interruption))
}

/// Ctrl-C or SIGTERM ends the run and shows what there is; the second one ends the process.
fn stop_on_signal(shared: &Arc<Shared>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let shared = Arc::downgrade(shared);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("load-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                match shared.upgrade() {
                    Some(shared) if !shared.stopped() => shared.stop(),
                    _ => std::process::exit(130),
                }
            }
        });
    })?;
    Ok(())
}

/// Takes the weight through its steps; a reason when it was cut short.
fn climb(
    job: &Job,
    ramp: &Ramp,
    version: VersionId,
    shared: &Arc<Shared>,
    record: &mut Record,
) -> Result<Option<String>, Error> {
    for percent in &ramp.percents {
        let split = match ramp.admin.set(&ramp.version, *percent) {
            Ok(split) => split,
            Err(error) if record.steps.is_empty() => return Err(Error::Admin(error)),
            Err(error) => return Ok(Some(error)),
        };
        shared.begin_step(*percent);
        record.step(job, shared, Some((version, *percent, split)))?;
        if shared.stopped() {
            return Ok(Some(format!("stopped in the step of {percent} %; {} is left there", ramp.version)));
        }
    }
    Ok(None)
}

/// What the steps so far gave.
struct Record {
    clients: Vec<Client>,
    total: Tally,
    took: Duration,
    steps: Vec<StepRecord>,
}

/// A step before all names are known.
struct StepRecord {
    tally: Tally,
    clients: Vec<Client>,
    weight: Option<(VersionId, f64, admin::Split)>,
    starts_at: Duration,
    took: Duration,
}

impl Record {
    fn new(plan: &Plan) -> Self {
        Self {
            clients: vec![Client::default(); plan.clients as usize],
            total: Tally::default(),
            took: Duration::ZERO,
            steps: Vec::new(),
        }
    }

    fn step(
        &mut self,
        job: &Job,
        shared: &Arc<Shared>,
        weight: Option<(VersionId, f64, admin::Split)>,
    ) -> Result<(), Error> {
        let starts_at = shared.epoch.elapsed();
        let began = Instant::now();
        let mut clients = std::mem::take(&mut self.clients);
        clients.iter_mut().for_each(Client::next_step);
        let (tally, clients) = engine::run(&job.plan, shared, clients)?;
        let took = began.elapsed();
        self.took += took;
        self.total.add(tally.clone());
        self.clients.clone_from(&clients);
        self.steps.push(StepRecord { tally, clients, weight, starts_at, took });
        Ok(())
    }

    fn outcome(self, job: &Job, shared: &Shared, interruption: Option<String>) -> Outcome {
        let names = shared.names.list();
        let total = Counts::new(&self.total, &self.clients, &names, &job.plan, self.took);
        let mut steps: Vec<Step> = Vec::new();
        let mut share_before = None;
        for step in self.steps {
            let (Some((version, percent, split)), Some(ramp)) = (step.weight, &job.ramp) else { continue };
            let counts = Counts::new(&step.tally, &step.clients, &names, &job.plan, step.took);
            let to = percent / 100.0;
            // One alpha for the whole ramp: each step makes two tests.
            #[expect(clippy::cast_precision_loss, reason = "a handful of steps")]
            let alpha = job.rules.alpha / (2 * ramp.percents.len()) as f64;
            let expect = vec![Expectation { version: ramp.version.clone(), share: to }];
            let mut findings = verdict::judge(&counts, &Rules { expect, alpha, ..job.rules.clone() });
            if to <= 0.0 {
                findings.push(emptied(&counts, &ramp.version));
            }
            let mut moves = None;
            if let Some(from) = share_before.replace(to)
                && job.rules.has_clients
            {
                let (moved, more) = ramp::judge(&step.clients, &names, ramp::Change { version, from, to }, alpha);
                moves = Some(moved);
                findings.extend(more);
            }
            steps.push(Step {
                percent,
                generation: split.generation,
                shares: split.shares,
                starts_at_seconds: step.starts_at.as_secs_f64(),
                counts,
                moves,
                findings,
            });
        }
        let findings = if job.ramp.is_some() { Vec::new() } else { verdict::judge(&total, &job.rules) };
        let all = steps.iter().flat_map(|s| &s.findings).chain(&findings);
        let mut violations: Vec<String> =
            all.filter(|f| !f.holds).map(|f| format!("{}: {}", f.check, f.statement)).collect();
        if let Some(why) = &interruption
            && (job.ramp.is_some() || shared.fatal().is_some())
        {
            violations.push(format!("interrupted: {why}"));
        }
        let verdict = if !violations.is_empty() {
            Verdict::Violated
        } else if job.rules.expect.is_empty() && job.ramp.is_none() {
            Verdict::Measured
        } else {
            Verdict::Holds
        };
        Outcome {
            schema: 1,
            verdict,
            violations,
            interrupted: interruption.is_some(),
            interruption,
            run: Run::new(&job.plan, job.rules.alpha),
            resolution: if job.ramp.is_some() { Vec::new() } else { verdict::resolution(&total, &job.rules) },
            timeline: outcome::timeline(&self.total, &names),
            total,
            findings,
            steps,
        }
    }
}

fn emptied(counts: &Counts, version: &str) -> Finding {
    let left = counts.versions.iter().find(|v| *v.version == *version).map_or(0, |v| v.requests);
    let statement = match left {
        0 => format!("no request after the change reached {version}"),
        left => format!("{left} requests after the change still reached {version}"),
    };
    Finding { seen: None, n: Some(counts.answers), ..Finding::plain("emptied", left == 0, statement) }
}

//! perch's admin interface, as a ramp needs it: read the split, set a weight, wait until it is in force.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::client::{Client, ClientError, Version, encode};

/// One service of a running perch.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    service: String,
}

/// The split of the service at one generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    pub generation: u64,
    /// 0 to 1, by version.
    pub shares: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
struct Services {
    generation: u64,
    services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Service {
    name: String,
    versions: Vec<Version>,
}

#[derive(Debug, Deserialize)]
struct Published {
    generation: u64,
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Somebody else changed the weights between our look and our write, this often.
const CONFLICTS: u32 = 5;

impl Admin {
    /// Of `url` (plain HTTP) for one service.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, token: Option<String>, service: String) -> Result<Self, String> {
        let client = Client::new(url, token).map_err(|error| error.to_string())?;
        Ok(Self { client, service })
    }

    /// The split as it is now.
    ///
    /// # Errors
    /// When the admin interface does not answer, or does not know the service.
    pub fn split(&self) -> Result<Split, String> {
        let services: Services = self.client.get("/api/v1/services").map_err(|error| error.to_string())?;
        let names: Vec<&str> = services.services.iter().map(|s| s.name.as_str()).collect();
        let Some(service) = services.services.iter().find(|s| s.name == self.service) else {
            return Err(format!("--service {}: the admin interface knows {}", self.service, names.join(", ")));
        };
        let shares = service.versions.iter().map(|v| (v.name.clone(), v.share)).collect();
        Ok(Split { generation: services.generation, shares })
    }

    /// Gives `version` this many percent and waits until the split says so.
    ///
    /// # Errors
    /// When the change is refused or does not come into force.
    pub fn set(&self, version: &str, percent: f64) -> Result<Split, String> {
        let body = serde_json::json!({
            "weights": { version: format!("{percent}%") },
            "reason": "perch load ramp",
        });
        let path = format!("/api/v1/services/{}/weights", encode(&self.service));
        let mut conflicts = 0;
        let published: Published = loop {
            match self.client.post(&path, &body) {
                Ok(published) => break published,
                Err(error) if error.is_conflict() && conflicts < CONFLICTS => conflicts += 1,
                Err(error @ ClientError::Refused { .. }) => return Err(format!("perch refuses the weight: {error}")),
                Err(error) => return Err(error.to_string()),
            }
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let split = self.split()?;
            if split.generation >= published.generation {
                return match split.shares.get(version) {
                    Some(share) if (share - percent / 100.0).abs() < 1e-6 => Ok(split),
                    Some(share) => Err(format!(
                        "{version} was set to {percent} %, and generation {} says {} %; does somebody else change it?",
                        split.generation,
                        share * 100.0
                    )),
                    None => Err(format!("service {} has no version {version}", self.service)),
                };
            }
            if Instant::now() >= deadline {
                let (is, want) = (split.generation, published.generation);
                return Err(format!("generation {want} is not in force after {PATIENCE:?}; the admin says {is}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

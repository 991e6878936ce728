//! perch's admin interface, as a ramp needs it: read the split, set a weight, wait until it is in force.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where it is, and what opens it.
#[derive(Clone, Debug)]
pub struct Admin {
    authority: String,
    token: Option<String>,
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
struct Version {
    name: String,
    share: f64,
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
        let wrong = || format!("--admin {url}: write http://HOST:PORT");
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        Ok(Self { authority, token, service })
    }

    /// The split as it is now.
    ///
    /// # Errors
    /// When the admin interface does not answer, or does not know the service.
    pub async fn split(&self) -> Result<Split, String> {
        let (status, body) = self.call(http::Method::GET, "/api/v1/services".to_owned(), Bytes::new()).await?;
        let services: Services = self.parse(status, &body)?;
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
    pub async fn set(&self, version: &str, percent: f64) -> Result<Split, String> {
        let body = serde_json::json!({
            "weights": { version: format!("{percent}%") },
            "reason": "perch load ramp",
        });
        let body = Bytes::from(body.to_string());
        let path = format!("/api/v1/services/{}/weights", self.service);
        let mut conflicts = 0;
        let published: Published = loop {
            let (status, answer) = self.call(http::Method::POST, path.clone(), body.clone()).await?;
            if status == http::StatusCode::CONFLICT && conflicts < CONFLICTS {
                conflicts += 1;
                continue;
            }
            break self.parse(status, &answer)?;
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let split = self.split().await?;
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
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, status: http::StatusCode, body: &[u8]) -> Result<T, String> {
        let text = || String::from_utf8_lossy(body.get(..body.len().min(300)).unwrap_or_default()).into_owned();
        if !status.is_success() {
            return Err(format!("http://{} says {status}: {}", self.authority, text().trim()));
        }
        serde_json::from_slice(body)
            .map_err(|e| format!("http://{}: not what perch's admin says ({e}): {}", self.authority, text()))
    }

    async fn call(&self, method: http::Method, path: String, body: Bytes) -> Result<(http::StatusCode, Bytes), String> {
        let exchange = async {
            let tcp = TcpStream::connect(&self.authority).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| e.to_string())?;
            // Its error is the error of the one request.
            let driver = tokio::task::spawn_local(async move { connection.await.ok() });
            let mut request = http::Request::builder()
                .method(method)
                .uri(path)
                .header(http::header::HOST, &self.authority)
                .header(http::header::CONTENT_TYPE, "application/json");
            if let Some(token) = &self.token {
                request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            driver.abort();
            Ok((head.status, body))
        };
        let outcome: Result<_, String> = tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer in {PATIENCE:?}")));
        outcome.map_err(|e| format!("--admin http://{}: {e}", self.authority))
    }
}

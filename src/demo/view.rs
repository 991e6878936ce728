//! The demo's live view: what `/metrics` says about each version, as a small table that is refreshed in place on a
//! terminal, or as one plain line whenever something changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The admin listener is in the same process: it answers within milliseconds or something is wrong.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// The numbers of one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// By service and version name.
    pub versions: BTreeMap<(String, String), Version>,
    /// By reason; those that never happened are left out.
    pub flips: BTreeMap<String, f64>,
}

/// A version of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Version {
    pub requests: f64,
    /// Of the clients that the weights give it, 0 to 1.
    pub weight: f64,
    /// Of the remembered clients. `None`: nobody is remembered.
    pub clients: Option<f64>,
    pub ready: f64,
    pub endpoints: f64,
}

impl Picture {
    /// Reads Prometheus' text format. What it does not know it skips.
    #[must_use]
    pub fn read(exposition: &str) -> Self {
        let mut picture = Self::default();
        for series in exposition.lines().filter_map(Series::read) {
            picture.add(&series);
        }
        picture
    }

    fn add(&mut self, series: &Series<'_>) {
        if series.name == "perch_version_flips_total" {
            if let (Some(reason), true) = (series.label("reason"), series.value > 0.0) {
                *self.flips.entry(reason.to_owned()).or_default() += series.value;
            }
            return;
        }
        let (Some(service), Some(version)) = (series.label("service"), series.label("version")) else { return };
        let known =
            ["perch_requests_total", "perch_split_weight_ratio", "perch_split_observed_ratio", "perch_endpoints"];
        if !known.contains(&series.name) {
            return;
        }
        let version = self.versions.entry((service.to_owned(), version.to_owned())).or_default();
        match (series.name, series.label("unit"), series.label("state")) {
            ("perch_requests_total", ..) => version.requests += series.value,
            ("perch_split_weight_ratio", ..) => version.weight = series.value,
            ("perch_split_observed_ratio", Some("clients"), _) => {
                version.clients = series.value.is_finite().then_some(series.value);
            }
            ("perch_endpoints", _, state) => {
                version.endpoints += series.value;
                if state == Some("ready") {
                    version.ready += series.value;
                }
            }
            _ => {}
        }
    }

    /// Requests of a service, over its versions.
    fn requests_of(&self, service: &str) -> f64 {
        self.versions
            .iter()
            .filter(|((of, _), _)| of == service)
            .map(|(_, version)| version.requests)
            .fold(0.0, |sum, requests| sum + requests)
    }

    fn flips_text(&self) -> String {
        // From 0.0: the sum of nothing is -0.0.
        let total = self.flips.values().fold(0.0, |sum, count| sum + count);
        let mut text = format!("flips {total}");
        if total > 0.0 {
            let reasons: Vec<String> = self.flips.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            write!(text, " ({})", reasons.join(", ")).expect("a String takes everything");
        }
        let unexplained = self.flips.get("unexplained").copied().unwrap_or_default();
        write!(text, ", unexplained {unexplained}").expect("a String takes everything");
        text
    }

    /// The table, its heading first.
    #[must_use]
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<8} {:<8} {:>7}  {:>8}  {:>18}  endpoints",
            "service", "version", "weight", "clients", "requests"
        )];
        for ((service, name), version) in &self.versions {
            let all = self.requests_of(service);
            lines.push(format!(
                "{service:<8} {name:<8} {:>7}  {:>8}  {:>9} {:>8}  {} of {} ready",
                percent(Some(version.weight)),
                percent(version.clients),
                version.requests,
                percent((all > 0.0).then(|| version.requests / all)),
                version.ready,
                version.endpoints,
            ));
        }
        lines.push(self.flips_text());
        lines
    }

    /// All in one line: `hello: 120 requests, stable 74.2 % (clients 75.0 %), canary ...; flips 0, unexplained 0`.
    #[must_use]
    pub fn line(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for ((service, name), version) in &self.versions {
            let all = self.requests_of(service);
            if service != last {
                let end = if last.is_empty() { "" } else { "; " };
                write!(text, "{end}{service}: {all} requests").expect("a String takes everything");
                last = service;
            }
            let share = percent((all > 0.0).then(|| version.requests / all));
            write!(text, ", {name} {share}").expect("a String takes everything");
            if version.clients.is_some() {
                write!(text, " (clients {})", percent(version.clients)).expect("a String takes everything");
            }
        }
        let end = if last.is_empty() { "" } else { "; " };
        write!(text, "{end}{}", self.flips_text()).expect("a String takes everything");
        text
    }
}

/// Asks the admin listener for its metrics.
///
/// # Errors
/// When it does not answer.
pub async fn look(admin: SocketAddr) -> anyhow::Result<Picture> {
    let ask = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(admin).await?)).await?;
        let request = http::Request::get("/metrics")
            .header(http::header::HOST, admin.to_string())
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        // The sender must go with the answer: the connection ends only then.
        let answer = async move { sender.send_request(request).await?.into_body().collect().await };
        let (ended, body) = tokio::join!(connection, answer);
        ended?;
        Ok(Picture::read(&String::from_utf8_lossy(&body?.to_bytes())))
    };
    tokio::time::timeout(LOOK_DEADLINE, ask).await?
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0))
}

/// One line of the text format.
struct Series<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Series<'a> {
    fn read(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Self { name, labels: labels.trim_end_matches('}'), value: value.parse().ok()? })
    }

    /// The names of the demo need no escapes, so none are undone.
    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = r#"# HELP perch_requests_total Requests.
# TYPE perch_requests_total counter
perch_requests_total{service="hello",version="stable",method="GET",code="200"} 70
perch_requests_total{service="hello",version="stable",method="HEAD",code="200"} 5
perch_requests_total{service="hello",version="canary",method="GET",code="200"} 25
perch_split_weight_ratio{service="hello",version="stable"} 0.75
perch_split_weight_ratio{service="hello",version="canary"} 0.25
perch_split_observed_ratio{service="hello",version="stable",unit="clients"} 0.8
perch_split_observed_ratio{service="hello",version="stable",unit="requests"} 0.1
perch_split_observed_ratio{service="hello",version="canary",unit="clients"} NaN
perch_endpoints{service="hello",version="stable",state="ready"} 2
perch_endpoints{service="hello",version="stable",state="ejected"} 1
perch_version_flips_total{service="hello",reason="weights"} 3
perch_version_flips_total{service="hello",reason="unexplained"} 0
"#;

    #[test]
    fn the_exposition_becomes_a_picture() {
        let picture = Picture::read(EXPOSITION);

        let version = |name: &str| picture.versions[&("hello".to_owned(), name.to_owned())].clone();
        assert_eq!(
            version("stable"),
            Version { requests: 75.0, weight: 0.75, clients: Some(0.8), ready: 2.0, endpoints: 3.0 }
        );
        assert_eq!(version("canary").clients, None);
        assert_eq!(picture.flips, BTreeMap::from([("weights".to_owned(), 3.0)]));
    }

    #[test]
    fn a_line_says_it_all() {
        assert_eq!(
            Picture::read(EXPOSITION).line(),
            "hello: 100 requests, canary 25.0 %, stable 75.0 % (clients 80.0 %); flips 3 (weights 3), unexplained 0"
        );
    }

    #[test]
    fn an_empty_exposition_is_an_empty_picture() {
        assert_eq!(Picture::read("").line(), "flips 0, unexplained 0");
    }
}

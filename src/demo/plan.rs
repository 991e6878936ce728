//! What the demo runs: its ports and its configuration as text, the same text that it prints.

use std::fmt::Write;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::bail;

use super::fleet::Addresses;

const TEMPLATE: &str = include_str!("config.yaml");

/// Ports after the wanted one that are tried when it is taken.
const NEXT_PORTS: u16 = 20;

/// Everything that the text depends on.
#[derive(Clone, Debug)]
pub struct Plan {
    pub https: u16,
    pub admin: u16,
    /// Share of the users that get the canary, 0 to 100.
    pub canary_percent: f64,
    pub affinity: Affinity,
    pub addresses: Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Affinity {
    /// Each request may get either version
    None,
    /// Each client address keeps its version
    #[value(name = "clientip", alias = "ClientIP")]
    ClientIp,
}

impl Plan {
    /// The configuration, commented, as a person would write it.
    #[must_use]
    pub fn config(&self) -> String {
        let Addresses { stable, canary, auth, health_port } = &self.addresses;
        let mut endpoints = String::new();
        for address in stable {
            writeln!(endpoints, "          - {address}").expect("a String takes everything");
        }
        let check = match health_port {
            Some(port) => format!("/readiness, port: {port}"),
            None => "/version".into(),
        };
        let affinity = match self.affinity {
            Affinity::None => "None",
            Affinity::ClientIp => "ClientIP",
        };
        [
            ("{https}", self.https.to_string()),
            ("{admin}", self.admin.to_string()),
            ("{affinity}", affinity.into()),
            ("{check}", check),
            ("{stable-weight}", (100.0 - self.canary_percent).to_string()),
            ("{canary-weight}", self.canary_percent.to_string()),
            ("{stable-endpoints}\n", endpoints),
            ("{canary}", canary.to_string()),
            ("{auth}", auth.to_string()),
        ]
        .iter()
        .fold(TEMPLATE.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Five lines to paste: hello, login, secure with the token, explain, metrics.
    #[must_use]
    pub fn commands(&self) -> [String; 5] {
        let (https, admin) = (format!("https://127.0.0.1:{}", self.https), format!("http://127.0.0.1:{}", self.admin));
        let login = format!("curl -sk -u user:password {https}/login");
        [
            format!("curl -k {https}/"),
            login.replace("-sk", "-k"),
            format!("curl -k -H \"Authorization: Bearer $({login} | cut -d'\"' -f4)\" {https}/secure"),
            format!("curl '{admin}/api/v1/explain?host=127.0.0.1&path=/&ip=127.0.0.1'"),
            format!("curl {admin}/metrics"),
        ]
    }

    /// Arguments of perch that prove the split to those who doubt it. `None` where nobody keeps a version.
    #[must_use]
    pub fn proof(&self) -> Option<String> {
        let url = format!("https://127.0.0.1:{}/", self.https);
        (self.affinity == Affinity::ClientIp).then(|| {
            format!("load {url} --clients 1000 --requests 5 --expect canary={}% --insecure", self.canary_percent)
        })
    }

    /// The dashboard's address, for a browser.
    #[must_use]
    pub fn dashboard(&self) -> String {
        format!("http://127.0.0.1:{}/", self.admin)
    }

    /// Arguments of perch that change the split: users to judge by, a look, a weight, a guarded ramp.
    #[must_use]
    pub fn rollout(&self) -> [String; 4] {
        let admin =
            if self.admin == USUAL_ADMIN { String::new() } else { format!(" --admin http://127.0.0.1:{}", self.admin) };
        [
            format!("load https://127.0.0.1:{}/ --insecure --rate 100 --duration 3m", self.https),
            format!("status hello -w{admin}"),
            format!("set-weight hello canary=20% --dry-run{admin}"),
            format!("promote hello --guarded --wait{admin}"),
        ]
    }
}

/// Where perch's admin listener is when nobody says otherwise.
const USUAL_ADMIN: u16 = 9900;

/// The wanted port on 127.0.0.1, or the next free one after it; any for 0. `except` is spoken for already.
///
/// # Errors
/// When none is free.
pub fn free_port(wanted: u16, except: Option<u16>) -> anyhow::Result<u16> {
    let last = wanted.saturating_add(NEXT_PORTS);
    if wanted == 0 {
        return Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
    }
    for port in (wanted..=last).filter(|port| Some(*port) != except) {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("the ports {wanted} to {last} are taken; write another one, or 0 for any")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            https: 8443,
            admin: 9900,
            canary_percent: 12.5,
            affinity: Affinity::ClientIp,
            addresses: Addresses::nominal(3),
        }
    }

    #[test]
    fn every_blank_of_the_template_is_filled() {
        let text = plan().config();

        let blanks: Vec<&str> = text
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split_once('}'))
            .map(|(name, _)| name)
            .filter(|name| !name.contains(':'))
            .collect();
        assert_eq!(blanks, Vec::<&str>::new());
        assert!(text.contains("weight: 87.5") && text.contains("weight: 12.5"), "{text}");
    }

    #[test]
    fn the_real_loader_takes_it() {
        let loaded = crate::config::parse(&plan().config(), std::path::Path::new("."), &|_| None).unwrap();

        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let hello = &loaded.config.services[0];
        assert_eq!(hello.versions[0].endpoints.len(), 3);
        assert_eq!(hello.health.as_ref().and_then(|health| health.port), Some(8081));
    }

    #[test]
    fn a_taken_port_gives_the_next_free_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = taken.local_addr().unwrap().port();

        // Close to the end of the range there may be no next one.
        if wanted < u16::MAX - NEXT_PORTS {
            assert!(free_port(wanted, None).unwrap() > wanted);
        }
    }
}

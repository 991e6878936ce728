//! What a start and a reload need before anything changes: sockets, certificates, the files to watch. Whatever fails here
//! has its key path, and nothing has happened yet.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;

use super::StartError;
use super::given::Given;
use crate::config::{self, Config, Invalid, Problem};
use crate::endpoint_tls::{self, EndpointsTls, Prepared};
use crate::proxy::tls::Tls;
use crate::proxy::workers::Bound;

/// One open listener.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) asked: SocketAddr,
    pub(super) bound: SocketAddr,
    pub(super) tls: Option<Tls>,
}

pub(super) fn bind(
    position: usize,
    listener: &config::Listener,
    count: usize,
    places: &config::Places,
    open: &BTreeMap<Arc<str>, Open>,
) -> Result<Bound, StartError> {
    // An address that one listener leaves may be taken by another in the same step: renamed, swapped, widened.
    let is_left = open.values().any(|o| overlaps(o.bound, listener.address));
    let bound = if is_left { Bound::beside(listener.address, count) } else { Bound::bind(listener.address, count) };
    bound.map_err(|error| no_listener(position, listener, places, &error))
}

/// At the start: a socket that was given, or one of perch's own.
pub(super) fn bind_first(
    position: usize,
    listener: &config::Listener,
    count: usize,
    places: &config::Places,
    given: &mut Given,
) -> Result<Bound, StartError> {
    let sockets = given.take(Some(&listener.name), listener.address);
    let is_left = given.addresses().iter().any(|a| overlaps(*a, listener.address));
    let bound = match (sockets.is_empty(), is_left) {
        (false, _) => Bound::adopt(sockets, count),
        (true, true) => Bound::beside(listener.address, count),
        (true, false) => Bound::bind(listener.address, count),
    };
    bound.map_err(|error| no_listener(position, listener, places, &error))
}

fn no_listener(position: usize, listener: &config::Listener, places: &config::Places, error: &io::Error) -> StartError {
    let path = format!("listeners[{position}].address");
    StartError::Bind(places.problem(path, cannot_listen(listener.address, error)))
}

/// The admin listener's socket: one that was given, or its own.
pub(super) fn bind_admin(
    config: &Config,
    places: &config::Places,
    given: &mut Given,
) -> Result<TcpListener, StartError> {
    let address = config.admin.address;
    let socket = given.take(None, address).pop().map_or_else(|| TcpListener::bind(address), Ok);
    socket.map_err(|error| StartError::Bind(places.problem("admin.address", cannot_listen(address, &error))))
}

/// Whether two listening addresses exclude each other.
fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || is_any)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or write another port",
        io::ErrorKind::PermissionDenied => "write a port of 1024 or more, or give perch CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "write an address of this machine, 0.0.0.0 or [::] for all",
        _ => "see the error",
    };
    format!("can't listen on {address} ({error}); {fix}")
}

/// Reads the certificates of every listener with TLS, in the config's order; all problems at once.
pub(super) fn read_certificates(
    config: &Config,
    places: &config::Places,
    open: &BTreeMap<Arc<str>, Open>,
) -> Result<Vec<Option<Tls>>, StartError> {
    let mut problems = Vec::new();
    let mut all = Vec::new();
    for (position, listener) in config.listeners.iter().enumerate() {
        let Some(pairs) = &listener.tls else {
            all.push(None);
            continue;
        };
        let previous = open.get(&listener.name).and_then(|o| o.tls.as_ref());
        match Tls::new(&format!("listeners[{position}].tls"), pairs, previous) {
            Ok((tls, warnings)) => {
                for warning in warnings {
                    warn!("{}", places.problem(warning.path, warning.message));
                }
                all.push(Some(tls));
            }
            Err(found) => problems.extend(found.into_iter().map(|p| places.problem(p.path, p.message))),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(StartError::Invalid(Invalid { problems, warnings: Vec::new() })) }
}

/// Reads what endpoints with TLS are reached with; all problems at once.
pub(super) fn read_endpoints_tls(
    endpoints_tls: &EndpointsTls,
    config: &Config,
    places: &config::Places,
) -> Result<Prepared, StartError> {
    let place = |p: Problem| places.problem(p.path, p.message);
    match endpoints_tls.prepare(config) {
        Ok((prepared, warnings)) => {
            for warning in warnings {
                warn!("{}; what it was stays in use", place(warning));
            }
            Ok(prepared)
        }
        Err(found) => {
            let problems = found.into_iter().map(place).collect();
            Err(StartError::Invalid(Invalid { problems, warnings: Vec::new() }))
        }
    }
}

/// Files whose change matters: the configuration and what it names.
pub(super) fn watched(config: &Config, file: Option<&PathBuf>) -> Vec<PathBuf> {
    let pairs = config.listeners.iter().filter_map(|l| l.tls.as_ref()).flat_map(|t| &t.certificates);
    let tls = config.listeners.iter().filter_map(|l| l.tls.as_ref());
    let clients = tls.flat_map(|t| &t.client_certificates).flat_map(|c| c.ca_files.clone());
    pairs
        .flat_map(|p| [p.cert_file.clone(), p.key_file.clone()])
        .chain(clients)
        .chain(endpoint_tls::files(config))
        .chain(file.cloned())
        .collect()
}

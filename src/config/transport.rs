//! How a service's endpoints are spoken to: `protocol` and `tls`, of the service or of one version.

use std::sync::Arc;

use super::decode::{Map, Node};
use super::listeners::certificate;
use super::model::{EndpointProtocol, EndpointTls, Transport};
use super::scalar::shown;

/// The keys as they stand somewhere.
#[derive(Clone, Default)]
pub(super) struct Keys {
    protocol: Option<EndpointProtocol>,
    tls: Option<EndpointTls>,
    /// One of them has a problem of its own: whether they fit together cannot be said.
    is_broken: bool,
}

const PROTOCOLS: [(&str, EndpointProtocol); 4] = [
    ("http1", EndpointProtocol::Http1),
    ("h2c", EndpointProtocol::H2c),
    ("h2", EndpointProtocol::H2),
    ("auto", EndpointProtocol::Auto),
];

/// The protocol's word in the file.
pub(super) fn word(protocol: EndpointProtocol) -> &'static str {
    PROTOCOLS.iter().find(|(_, p)| *p == protocol).map_or("http1", |(word, _)| word)
}

/// Takes the keys out of a service or a version.
pub(super) fn take(map: &mut Map<'_>) -> Keys {
    let protocol = map.take("protocol").map(|n| n.word(&PROTOCOLS));
    let tls = map.take("tls").map(|n| tls(&n));
    let is_broken = matches!(protocol, Some(None)) || matches!(tls, Some(None));
    Keys { protocol: protocol.flatten(), tls: tls.flatten(), is_broken }
}

/// A version's own keys before its service's.
pub(super) fn resolve(node: &Node<'_>, own: Keys, service: &Keys) -> Arc<Transport> {
    let protocol = own.protocol.or(service.protocol).unwrap_or_default();
    let tls = own.tls.or_else(|| service.tls.clone());
    match (protocol, &tls) {
        _ if own.is_broken || service.is_broken => {}
        (EndpointProtocol::H2c, Some(_)) => {
            node.problem("has protocol h2c, which is without TLS, and tls; write protocol: h2, or remove tls");
        }
        (EndpointProtocol::H2 | EndpointProtocol::Auto, None) => {
            let word = word(protocol);
            node.problem(format!("has protocol {word}, which needs tls; write tls, or protocol: h2c or http1"));
        }
        _ => {}
    }
    Arc::new(Transport { protocol, tls })
}

fn tls(node: &Node<'_>) -> Option<EndpointTls> {
    let mut map = node.map()?;
    let (mut hostname, mut ca_files, mut is_whole) = (None, Vec::new(), true);
    if let Some(mut validation) = map.take("validation").and_then(|n| n.map()) {
        hostname = validation.take("hostname").and_then(|n| {
            n.read("a DNS name or an IP address, such as hello.internal", |text| {
                let name = rustls_pki_types::ServerName::try_from(text);
                name.map(|_| text.to_owned()).map_err(|_| format!("{} is not a name", shown(text)))
            })
        });
        let files = validation.take("caCertificates");
        let system = validation.take("wellKnownCACertificates");
        if let (Some(_), Some(node)) = (&files, &system) {
            node.problem("stands beside caCertificates; write one of the two");
        }
        if let Some(node) = system {
            is_whole &= node.word(&[("System", ())]).is_some();
        }
        if let Some(nodes) = files.and_then(|n| n.filled_list("paths of PEM files with CA certificates")) {
            ca_files = nodes.iter().filter_map(Node::file).collect();
        }
        validation.finish();
    }
    let client_certificate = map.take("clientCertificate").and_then(|n| certificate(&n));
    map.finish();
    is_whole.then_some(EndpointTls { hostname, ca_files, client_certificate })
}

//! The `listeners` of a file.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::decode::Node;
use super::defaults;
use super::file::{Named, Names, TIMEOUT, unique_name};
use super::model::{
    CertificateFiles, ClientCertificateMode, ClientCertificates, Listener, ListenerLimits, ListenerTimeouts,
    ProxyProtocol, RedirectToHttps, Tls, TlsVersion,
};
use super::scalar;

/// A tunnel may be quiet for long: a week.
const TUNNEL: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(7 * 86_400);

pub(super) fn decode<'a>(nodes: &[Node<'a>], admin: SocketAddr) -> Vec<Named<'a, Arc<Listener>>> {
    let mut names = Names::new();
    let mut addresses = HashMap::from([(admin, "the admin listener".to_owned())]);
    nodes
        .iter()
        .map(|node| {
            let (name, value) = listener(node, &mut names, &mut addresses).unzip();
            Named { node: node.clone(), name: name.flatten(), value: value.flatten().map(Arc::new) }
        })
        .collect()
}

type Parts = (Option<String>, Option<Listener>);

fn listener(node: &Node<'_>, names: &mut Names, taken: &mut HashMap<SocketAddr, String>) -> Option<Parts> {
    let mut map = node.map()?;
    let name = unique_name(&mut map, names);
    let address = map
        .need("address", "an address with a port, such as 0.0.0.0:443")
        .and_then(|n| Some((n.read("one such as 0.0.0.0:443 or \"[::]:443\"", scalar::listen_address)?, n)));
    if let Some((address, node)) = &address {
        match taken.get(address) {
            // Port 0 is another one each time.
            Some(who) if address.port() != 0 => {
                node.problem(format!("{address} is taken by {who}; write another address or port"));
            }
            _ => drop(taken.insert(*address, format!("the listener in line {}", node.line()))),
        }
    }
    let tls_node = map.take("tls");
    let tls = tls_node.as_ref().and_then(tls);
    let redirect_to_https = map.take("redirectToHttps").and_then(|n| {
        let redirect = redirect(&n)?;
        if tls_node.is_some() {
            n.problem("this listener has tls, so it would redirect to itself; remove one of the two");
        }
        Some(redirect)
    });
    let listener = Listener {
        name: name.as_deref().unwrap_or_default().into(),
        address: address.as_ref().map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |(a, _)| *a),
        tls,
        redirect_to_https,
        proxy_protocol: map.take("proxyProtocol").and_then(|n| proxy_protocol(&n)),
        trusted_proxies: map.take("trustedProxies").map_or(Vec::new(), |n| networks(&n)),
        timeouts: map.take("timeouts").map_or_else(ListenerTimeouts::default, |n| timeouts(&n)),
        limits: map.take("limits").map_or_else(ListenerLimits::default, |n| limits(&n)),
    };
    map.finish();
    let valid = name.is_some() && address.is_some();
    Some((name, valid.then_some(listener)))
}

fn tls(node: &Node<'_>) -> Option<Tls> {
    let mut map = node.map()?;
    let nodes =
        map.need("certificates", "a list of certFile and keyFile").and_then(|n| n.filled_list("certFile and keyFile"));
    let certificates = nodes.map(|nodes| nodes.iter().filter_map(certificate).collect());
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let min_version = map.take("minVersion").and_then(|n| n.word(&versions)).unwrap_or(TlsVersion::V1_2);
    let strict_sni = map.boolean("strictSni", false);
    let clients = map.take("clientCertificates").map(|n| client_certificates(&n));
    map.finish();
    let client_certificates = match clients {
        None => None,
        // A broken one must not become none.
        Some(clients) => Some(clients?),
    };
    Some(Tls { certificates: certificates?, min_version, strict_sni, client_certificates })
}

fn client_certificates(node: &Node<'_>) -> Option<ClientCertificates> {
    let mut map = node.map()?;
    let modes = [("required", ClientCertificateMode::Required), ("optional", ClientCertificateMode::Optional)];
    let mode = map.need("mode", "required or optional").and_then(|n| n.word(&modes));
    let files = map
        .need("caCertificates", "a list of paths of PEM files")
        .and_then(|n| n.filled_list("paths of PEM files with CA certificates"))
        .map(|nodes| nodes.iter().filter_map(Node::file).collect());
    map.finish();
    Some(ClientCertificates { mode: mode?, ca_files: files? })
}

pub(super) fn certificate(node: &Node<'_>) -> Option<CertificateFiles> {
    let mut map = node.map()?;
    let cert_file = map.need("certFile", "the path of a PEM file with the chain").and_then(|n| n.file());
    let key_file = map.need("keyFile", "the path of a PEM file with the key").and_then(|n| n.file());
    map.finish();
    Some(CertificateFiles { cert_file: cert_file?, key_file: key_file? })
}

fn redirect(node: &Node<'_>) -> Option<RedirectToHttps> {
    let mut redirect = RedirectToHttps { port: 443, status: defaults::REDIRECT_STATUS };
    if node.is_scalar() {
        return node.boolean()?.then_some(redirect);
    }
    let mut map = node.map()?;
    redirect.port = map.integer("port", redirect.port, 1..=65_535);
    let statuses = [("301", 301), ("302", 302), ("307", 307), ("308", 308)];
    redirect.status = map.take("status").and_then(|n| n.word(&statuses)).unwrap_or(redirect.status);
    map.finish();
    Some(redirect)
}

fn proxy_protocol(node: &Node<'_>) -> Option<ProxyProtocol> {
    let mut map = node.map()?;
    let trusted = map.need("trusted", "the networks of the senders").map(|n| {
        // Without one, every connection would be closed.
        n.filled_list("the senders' networks").map_or(Vec::new(), |_| networks(&n))
    });
    let timeout = map.duration("timeout", defaults::PROXY_PROTOCOL_TIMEOUT, TIMEOUT);
    map.finish();
    Some(ProxyProtocol { trusted: trusted?, timeout })
}

/// Networks that may tell perch who the client is.
fn networks(node: &Node<'_>) -> Vec<IpNet> {
    let networks = all_networks(node);
    if let Some(all) = networks.iter().find(|n| n.prefix_len() == 0) {
        node.warn(format!("{all} trusts everyone: any client can claim any address; write the proxies' networks"));
    }
    networks
}

/// A list of networks; those that can't be read are reported and left out.
pub(super) fn all_networks(node: &Node<'_>) -> Vec<IpNet> {
    node.list("networks")
        .unwrap_or_default()
        .iter()
        .filter_map(|n| n.read("one such as 10.0.0.0/8 or 2001:db8::/32", scalar::network))
        .collect()
}

fn timeouts(node: &Node<'_>) -> ListenerTimeouts {
    let mut t = ListenerTimeouts::default();
    let Some(mut map) = node.map() else { return t };
    t.tls_handshake = map.duration("tlsHandshake", t.tls_handshake, TIMEOUT);
    t.first_byte = map.duration("firstByte", t.first_byte, TIMEOUT);
    t.head = map.duration("head", t.head, TIMEOUT);
    t.body = map.duration("body", t.body, TIMEOUT);
    t.write = map.duration("write", t.write, TIMEOUT);
    t.idle = map.duration("idle", t.idle, TIMEOUT);
    t.upgraded_idle = map.duration("upgradedIdle", t.upgraded_idle, TUNNEL);
    map.finish();
    t
}

fn limits(node: &Node<'_>) -> ListenerLimits {
    let mut l = ListenerLimits::default();
    let Some(mut map) = node.map() else { return l };
    // hyper's read buffer is at least 8 KiB; a head of more than 1 MiB is an attack.
    l.head_bytes = map.integer("headBytes", l.head_bytes, 8_192..=1_048_576);
    l.target_bytes = map.integer("targetBytes", l.target_bytes, 256..=65_536);
    l.fields = map.integer("fields", l.fields, 10..=10_000);
    l.connections = map.integer("connections", l.connections, 1..=10_000_000);
    l.connections_per_client = map.integer("connectionsPerClient", l.connections_per_client, 0..=10_000_000);
    l.streams = map.integer("streams", l.streams, 1..=10_000);
    l.body_rate = map.integer("bodyRate", l.body_rate, 0..=1_000_000_000);
    map.finish();
    if l.target_bytes > l.head_bytes {
        node.problem(format!(
            "targetBytes of {} is more than headBytes of {}, of which the target is a part; write a smaller targetBytes",
            l.target_bytes, l.head_bytes
        ));
    }
    l
}

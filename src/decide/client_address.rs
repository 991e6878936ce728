//! Who the client is, when proxies in front say so: `X-Forwarded-For` through trusted networks.

use std::net::IpAddr;

use ipnet::IpNet;

/// Walks all `X-Forwarded-For` lines from the right past `trusted` networks. `peer` is the socket's (or PROXY
/// protocol's) address; the lines count only when it is trusted. Garbage stops the walk at the last good hop.
pub fn client_address<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    _forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> IpAddr {
    let _ = trusted;
    peer
}

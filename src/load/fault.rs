//! What can go wrong with one request, in a closed set of kinds, and which of it ends the run.

use std::io;

/// The kind of an error; its label is what the table and the JSON show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ConnectRefused,
    ConnectFailed,
    Tls,
    Timeout,
    Reset,
    Closed,
    Protocol,
    NoVersion,
    Status(u16),
    OutOfPorts,
    OutOfDescriptors,
    SourceAddress,
}

impl Kind {
    /// Kebab-case, stable.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::ConnectRefused => "connect-refused".to_owned(),
            Self::ConnectFailed => "connect-failed".to_owned(),
            Self::Tls => "tls".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Reset => "reset".to_owned(),
            Self::Closed => "closed-early".to_owned(),
            Self::Protocol => "protocol".to_owned(),
            Self::NoVersion => "no-version".to_owned(),
            Self::Status(code) => format!("status-{code}"),
            Self::OutOfPorts => "out-of-ports".to_owned(),
            Self::OutOfDescriptors => "out-of-descriptors".to_owned(),
            Self::SourceAddress => "source-address".to_owned(),
        }
    }

    /// The machine's own limit, which makes every further figure meaningless: what to do about it.
    #[must_use]
    pub const fn fix(self) -> Option<&'static str> {
        match self {
            Self::OutOfPorts => Some(
                "no local port is left for another connection: keep connections alive (leave out \
                 --connection-per-request), spread them over more --clients with --identity source, or widen \
                 net.ipv4.ip_local_port_range (sysctl)",
            ),
            Self::OutOfDescriptors => Some(
                "no file descriptor is left for another connection: lower --concurrency, or raise the limit \
                 (ulimit -n, or LimitNOFILE= of the unit)",
            ),
            Self::SourceAddress => Some(
                "a client's address cannot be used on this machine: use a range that is the machine's own \
                 (127.0.0.0/8 towards loopback; for another one `ip route add local RANGE dev lo`, for IPv6 \
                 `ip -6 route add local RANGE dev lo`, as root), or --identity proxy-v2 or xff",
            ),
            Self::ConnectRefused
            | Self::ConnectFailed
            | Self::Tls
            | Self::Timeout
            | Self::Reset
            | Self::Closed
            | Self::Protocol
            | Self::NoVersion
            | Self::Status(_) => None,
        }
    }
}

/// One failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", kind.label())]
pub struct Fault {
    pub kind: Kind,
    pub detail: String,
    /// The server closed a kept-alive connection before the first byte of an answer: any client may send the request
    /// again on a new one (RFC 9110 section 9.2.2).
    pub stale: bool,
}

impl Fault {
    /// Of `kind`, with words for a person.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), stale: false }
    }

    /// While a connection was made.
    #[must_use]
    pub fn connecting(error: &io::Error, what: impl std::fmt::Display) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => Kind::ConnectRefused,
            io::ErrorKind::TimedOut => Kind::Timeout,
            io::ErrorKind::ConnectionReset => Kind::Reset,
            io::ErrorKind::AddrNotAvailable => Kind::OutOfPorts,
            _ if out_of_descriptors(error) => Kind::OutOfDescriptors,
            _ => Kind::ConnectFailed,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    /// While a request was written or its answer read.
    #[must_use]
    pub fn talking(error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Kind::Reset
            }
            io::ErrorKind::UnexpectedEof => Kind::Closed,
            io::ErrorKind::TimedOut => Kind::Timeout,
            io::ErrorKind::InvalidData => Kind::Tls,
            _ => Kind::Protocol,
        };
        Self::new(kind, error.to_string())
    }
}

/// EMFILE and ENFILE have no `ErrorKind`.
pub fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == nix::errno::Errno::EMFILE as i32
        || code == nix::errno::Errno::ENFILE as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_ports_or_descriptors_comes_with_the_fix() {
        let ports = Fault::connecting(&io::Error::from_raw_os_error(nix::errno::Errno::EADDRNOTAVAIL as i32), "x");
        let files = Fault::connecting(&io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32), "x");

        assert!(ports.kind.fix().unwrap().contains("ip_local_port_range"));
        assert!(files.kind.fix().unwrap().contains("ulimit -n"));
    }
}

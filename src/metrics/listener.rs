//! Metrics of a listener: its connections and TLS handshakes. The handles live as long as the listener does.

use metrics::{Counter, Gauge};

use super::{ACCEPT_ERRORS, CONNECTIONS, CONNECTIONS_TOTAL, HANDSHAKES, counter, gauge};

/// Of a listener.
#[derive(Debug)]
pub struct ListenerMetrics {
    connections: Gauge,
    accepted: Counter,
    accept_errors: Counter,
    /// TLS 1.2, 1.2 resumed, 1.3, 1.3 resumed.
    handshakes: [Counter; 4],
}

impl ListenerMetrics {
    #[must_use]
    pub fn new(listener: &str) -> Self {
        let handshake = |version, resumed| {
            counter(HANDSHAKES, &[("listener", listener), ("version", version), ("resumed", resumed)])
        };
        Self {
            connections: gauge(CONNECTIONS, &[("listener", listener)]),
            accepted: counter(CONNECTIONS_TOTAL, &[("listener", listener)]),
            accept_errors: counter(ACCEPT_ERRORS, &[("listener", listener)]),
            handshakes: [
                handshake("1.2", "false"),
                handshake("1.2", "true"),
                handshake("1.3", "false"),
                handshake("1.3", "true"),
            ],
        }
    }

    /// A connection was accepted; it counts as open until the guard is dropped.
    #[must_use]
    pub fn opened(&self) -> OpenConnection {
        self.accepted.increment(1);
        self.connections.increment(1.0);
        OpenConnection(self.connections.clone())
    }

    /// accept() failed.
    pub fn accept_error(&self) {
        self.accept_errors.increment(1);
    }

    /// A TLS handshake was completed.
    #[expect(clippy::indexing_slicing, reason = "two bits, four counters")]
    pub fn handshake(&self, is_tls13: bool, is_resumed: bool) {
        self.handshakes[usize::from(is_tls13) * 2 + usize::from(is_resumed)].increment(1);
    }
}

/// An open connection in `perch_connections`.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

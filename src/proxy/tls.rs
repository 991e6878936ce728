//! TLS of a listener: certificates by SNI and their reload, the rustls configuration, the handshake.

//! Why perch itself answered or ended a request, as a closed set.
//!
//! One label per case, kebab-case, equal in `perch_rejected_total`, the access log and the `perch-reason` header. The
//! sentence is for the client: it names no address and no cause inside the network. Where the connection is beyond an
//! answer (a TLS failure, a client that hung up), the status is only logged.

use std::fmt;

macro_rules! reasons {
    ($($(#[$note:meta])* $variant:ident $label:literal $status:literal $text:literal,)*) => {
        /// Why a request was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$note])* $variant,)* }

        impl Reason {
            /// Every reason, in order: `ALL[r as usize] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label in the metric, the log and the header.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The status of the answer, or of the log line when no answer can be sent.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// One plain sentence for the client.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    // The request.
    NotHttp "not-http" 400 "This is not an HTTP request.",
    TlsOnPlain "tls-on-plain" 400 "TLS was spoken to a plain HTTP port.",
    RequestLine "request-line" 400 "The request line is malformed.",
    Version "version" 505 "This version of HTTP is not supported.",
    Method "method" 405 "This method is not supported.",
    Target "target" 400 "The request target is malformed.",
    TargetLength "target-length" 414 "The request target is too long.",
    HeadSize "head-size" 431 "The header fields are too large.",
    FieldCount "field-count" 431 "There are too many header fields.",
    FieldName "field-name" 400 "A header field has a malformed name.",
    FieldValue "field-value" 400 "A header field has a malformed value.",
    ObsFold "obs-fold" 400 "A header field is folded over several lines.",
    BareLf "bare-lf" 400 "A line ends without a carriage return.",
    Host "host" 400 "The host is missing, malformed or given more than once.",
    HostMismatch "host-mismatch" 400 "The host of the target and the Host field differ.",
    ConnectionToken "connection-token" 400 "The Connection field names a field that cannot be removed.",
    Underscore "underscore" 400 "A header field has an underscore in its name.",
    LengthAndEncoding "length-and-encoding" 400 "Content-Length and Transfer-Encoding are both present.",
    ContentLength "content-length" 400 "The Content-Length is malformed or contradictory.",
    TransferEncoding "transfer-encoding" 400 "The Transfer-Encoding is malformed or not supported.",
    Chunk "chunk" 400 "The chunked body is malformed.",
    Expect "expect" 417 "This expectation cannot be met.",
    Upgrade "upgrade" 400 "The upgrade request is malformed.",
    Path "path" 400 "The path is malformed or leads above the root.",
    HeadTimeout "head-timeout" 408 "The request head did not arrive in time.",
    BodyTimeout "body-timeout" 408 "The request body did not arrive in time.",
    WriteTimeout "write-timeout" 408 "The response was not read in time.",
    FirstByteTimeout "first-byte-timeout" 408 "No request arrived in time.",
    ConnectionLimit "connection-limit" 503 "There are too many connections.",
    /// Memory is short: see `limits.memory`.
    MemoryLimit "memory-limit" 503 "The proxy is short of memory.",
    /// Frames or fields of HTTP/2 that RFC 9113 calls an error: the stream or the connection is reset.
    H2Malformed "h2-malformed" 400 "The HTTP/2 request is malformed.",
    /// More resets, control frames or continuations than a client may send: its connection ends.
    H2Flood "h2-flood" 400 "There are too many HTTP/2 frames that ask for nothing.",
    ProxyHeader "proxy-header" 400 "The PROXY header is malformed.",
    ProxyUntrusted "proxy-untrusted" 400 "A PROXY header is not accepted from this sender.",
    ProxyMissing "proxy-missing" 400 "The PROXY header is missing.",
    ProxyTimeout "proxy-timeout" 408 "The PROXY header did not arrive in time.",
    TlsNotTls "tls-not-tls" 400 "Plain text was spoken to a TLS port.",
    TlsTimeout "tls-timeout" 408 "The TLS handshake did not end in time.",
    TlsSni "tls-sni" 400 "No certificate is held for this server name.",
    TlsAlpn "tls-alpn" 400 "No protocol is spoken by both sides.",
    TlsVersion "tls-version" 400 "This version of TLS is not supported.",
    TlsClientCertificate "tls-client-certificate" 400 "The client's certificate is missing or does not hold.",
    TlsHandshake "tls-handshake" 400 "The TLS handshake did not succeed.",
    /// The client went away before its response was complete.
    ClientAbort "client-abort" 499 "The client went away.",
    Draining "draining" 503 "This proxy is shutting down.",
    // Routing.
    NoRoute "no-route" 404 "Nothing is served here.",
    Misdirected "misdirected" 421 "This host is not served on this connection.",
    // The upstream side.
    /// All weights of the service are 0.
    Closed "closed" 503 "The service is closed.",
    NoReadyEndpoint "no-ready-endpoint" 503 "The service has no ready endpoint.",
    ConnectRefused "connect-refused" 502 "The service refused the connection.",
    ConnectTimeout "connect-timeout" 504 "The service did not accept a connection in time.",
    ConnectFailed "connect-failed" 502 "The service could not be reached.",
    /// No handshake, or a certificate that does not hold.
    UpstreamTls "upstream-tls" 502 "The service could not be reached over a trusted connection.",
    /// This machine has no free port left towards the endpoint.
    LocalPorts "local-ports" 503 "The proxy has no free connection to the service.",
    ResponseTimeout "response-timeout" 504 "The service did not answer in time.",
    Reset "reset" 502 "The service closed the connection before it answered.",
    /// The same on a kept-alive connection, for a request that must not be sent twice.
    ResetOnReuse "reset-on-reuse" 502 "The service closed a kept connection before it answered.",
    /// An HTTP/2 endpoint did nothing with the request, again and again.
    StreamRefused "stream-refused" 503 "The service did not take the request.",
    BadResponse "bad-response" 502 "The service gave a malformed answer.",
    Bad101 "bad-101" 502 "The service switched protocols without being asked.",
    UpstreamTruncated "upstream-truncated" 502 "The service ended its answer too early.",
    UpstreamStalled "upstream-stalled" 504 "The service stopped in the middle of its answer.",
    /// Every endpoint has as many requests as it may.
    Overflow "overflow" 503 "The service has too many requests at once.",
    RetryBudget "retry-budget" 503 "The service is failing and too many requests are being retried.",
    Internal "internal" 500 "The proxy made a mistake.",
}

impl Reason {
    /// The version that was to answer is at fault: not the client, and not perch.
    #[must_use]
    pub const fn blames_version(self) -> bool {
        matches!(
            self,
            Self::NoReadyEndpoint
                | Self::ConnectRefused
                | Self::ConnectTimeout
                | Self::ConnectFailed
                | Self::ResponseTimeout
                | Self::Reset
                | Self::ResetOnReuse
                | Self::BadResponse
                | Self::Bad101
                | Self::UpstreamTruncated
                | Self::UpstreamStalled
                | Self::Overflow
                | Self::RetryBudget
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_unique_and_kebab_case() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();

        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
    }

    #[test]
    fn a_reason_is_its_position() {
        assert!(Reason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
    }

    #[test]
    fn every_reason_is_an_error_with_one_sentence() {
        for reason in Reason::ALL {
            assert!((400..600).contains(&reason.status()), "{reason}");
            assert!(reason.text().ends_with('.') && reason.text().matches('.').count() == 1, "{reason}");
        }
    }
}

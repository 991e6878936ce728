//! What the integration tests share: [`TestPerch`] (the built binary), [`TestBackend`] (an upstream that does what it
//! is told, broken things included), [`Client`] (HTTP/1 by hand, plain or TLS, from any loopback address), [`h2`], and
//! [`eventually`]. Helpers hide sockets, never an assertion.

mod authority;
mod backend;
mod client;
pub mod h2;
pub mod h2_backend;
mod perch;
mod process;
mod tls_relay;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use authority::Authority;
pub use backend::{Act, Seen, TestBackend, ok, response};
pub use client::{Client, Response, connect_from, get, tls_config};
pub use perch::{Launch, TestPerch};
pub use process::{Process, run_perch};
pub use tls_relay::TlsRelay;

/// How long a test waits for something that happens at once on an idle machine. CI machines are not idle.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, looking every few milliseconds. Panics after `deadline`, at the caller's line.
#[track_caller]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "still not so after {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`eventually`], for a value: waits until `look` finds one.
#[track_caller]
pub fn eventually_some<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(deadline, || {
        found = look();
        found.is_some()
    });
    found.expect("eventually() returned")
}

/// The files of a certificate that [`write_certificate`] made.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// To compare with what a server presents ([`Client::peer_certificate`]).
    pub der: Vec<u8>,
}

/// Makes a self-signed certificate for `names` and writes `NAME-cert.pem` and `NAME-key.pem` into `dir`.
pub fn write_certificate(dir: &Path, name: &str, names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let cert_file = dir.join(format!("{name}-cert.pem"));
    let key_file = dir.join(format!("{name}-key.pem"));
    replace_file(&cert_file, &made.cert.pem());
    replace_file(&key_file, &made.signing_key.serialize_pem());
    Certificate { cert_file, key_file, der: made.cert.der().to_vec() }
}

/// Writes a file as careful programs do: beside it, then renamed over it. A reader sees the old text or the new.
pub fn replace_file(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

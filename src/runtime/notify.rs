//! What systemd wants to know of a service of `Type=notify` (sd_notify(3)): that it is ready, that it reads its
//! configuration again, that it stops, and which process it is. Without NOTIFY_SOCKET nobody asks.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// It serves.
pub const READY: &str = "READY=1";
/// It drains.
pub const STOPPING: &str = "STOPPING=1";

/// It reads its configuration again, until it says [`READY`]. With the time: `Type=notify-reload` asks for it.
pub fn tell_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000));
}

/// Tells it. A manager that does not listen changes nothing here.
pub fn tell(state: &str) {
    let Some(to) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<usize> {
        let address = match to.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&to)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
    };
    if let Err(error) = send() {
        tracing::warn!(%error, "Cannot tell systemd (NOTIFY_SOCKET).");
    }
}

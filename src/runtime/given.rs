//! Listening sockets that perch did not open itself: those of systemd (LISTEN_FDS) and those of the perch that it takes
//! over from. A listener whose address one of them has uses it; the rest is closed.

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use tracing::warn;

/// All of them, until each has found its listener.
#[derive(Debug, Default)]
pub struct Given(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    /// What it was for in the perch that opened it.
    place: Option<Place>,
    bound: SocketAddr,
    socket: TcpListener,
}

/// A listener's name (`None`: the admin listener) and the address as it is configured, with port 0 where it says so.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    pub listener: Option<String>,
    pub asked: SocketAddr,
}

/// A descriptor that was announced and is none, or none of these.
#[derive(Debug, thiserror::Error)]
#[error(
    "LISTEN_FDS: descriptor number {0} of those given is no listening TCP socket ({1}); see the unit's ListenStream="
)]
pub struct BadDescriptor(usize, std::io::Error);

impl Given {
    /// What systemd, or whoever else speaks its protocol, gave this process. To be asked once.
    ///
    /// # Errors
    /// When one is no TCP socket.
    pub fn from_environment() -> Result<Self, BadDescriptor> {
        let mut descriptors = ListenFd::from_env();
        let mut given = Self::default();
        for n in 0..descriptors.len() {
            let taken = descriptors
                .take_tcp_listener(n)
                .and_then(|socket| socket.map(|socket| given.add(None, socket)).transpose());
            taken.map_err(|error| BadDescriptor(n, error))?;
        }
        Ok(given)
    }

    /// One more.
    ///
    /// # Errors
    /// When it has no address.
    pub fn add(&mut self, place: Option<Place>, socket: TcpListener) -> std::io::Result<()> {
        self.0.push(Socket { place, bound: socket.local_addr()?, socket });
        Ok(())
    }

    /// Those of a listener (`None`: the admin listener) that is configured to listen on `asked`.
    pub(super) fn take(&mut self, listener: Option<&str>, asked: SocketAddr) -> Vec<TcpListener> {
        let is_its = |s: &mut Socket| {
            let is_same = s.place.as_ref().is_some_and(|p| p.listener.as_deref() == listener && p.asked == asked);
            is_same || (asked.port() != 0 && s.bound == asked)
        };
        self.0.extract_if(.., is_its).map(|s| s.socket).collect()
    }

    /// Where somebody listens.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|s| s.bound).collect()
    }

    /// Closes what no listener wanted.
    pub(super) fn close_rest(self) {
        for socket in self.0.iter().filter(|s| s.place.is_none()) {
            warn!(address = %socket.bound, "No listener has the address of this given socket; closed it.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn a_listener_takes_the_sockets_of_its_address() {
        let (one, other) = (socket(), socket());
        let address = one.local_addr().unwrap();
        let mut given = Given::default();
        given.add(None, other).unwrap();
        given.add(None, one.try_clone().unwrap()).unwrap();
        given.add(None, one).unwrap();

        let taken = given.take(Some("http"), address);

        assert_eq!(taken.iter().map(|s| s.local_addr().unwrap()).collect::<Vec<_>>(), [address; 2]);
        assert_eq!(given.addresses().len(), 1);
    }

    #[test]
    fn a_port_that_the_kernel_picked_stays_with_its_listener() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let place = |name: Option<&str>| Some(Place { listener: name.map(str::to_owned), asked: any });
        let mut given = Given::default();
        given.add(place(Some("http")), socket()).unwrap();
        given.add(place(None), socket()).unwrap();
        given.add(None, socket()).unwrap();

        assert_eq!(given.take(Some("https"), any).len(), 0);
        assert_eq!(given.take(None, any).len(), 1);
        assert_eq!(given.take(Some("http"), any).len(), 1);
    }
}

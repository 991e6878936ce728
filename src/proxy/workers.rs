//! The workers as the rest of perch sees them: started once, told of listeners, drained at the end.
//!
//! Each runs a current-thread runtime on a thread of its own and holds its own SO_REUSEPORT socket of every listener, so
//! that the kernel spreads connections and no request crosses threads.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle as Task, LocalSet};

use super::accept::{Door, SharedTls, accept, accept_rest};
use super::tls::Tls;
use super::worker::{Shared, Worker};

/// Connections that wait to be accepted, per socket; the kernel's own limit (net.core.somaxconn) may be lower.
pub(super) const BACKLOG: i32 = 4096;

/// What workers are told.
enum Order {
    Listen {
        door: Arc<Door>,
        socket: StdListener,
        tls: Option<Tls>,
    },
    SetTls {
        name: Arc<str>,
        tls: Option<Tls>,
    },
    Close {
        name: Arc<str>,
    },
    /// Every socket that is accepted from, once more.
    Share {
        with: oneshot::Sender<Vec<(Arc<str>, OwnedFd)>>,
    },
    /// Listeners close, connections end each at their own time within the spread; answered when none is left.
    Drain {
        spread: Duration,
        done: oneshot::Sender<()>,
    },
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

/// Sockets of one listener, at least one per worker, bound and not yet accepted from.
#[derive(Debug)]
pub struct Bound {
    pub address: SocketAddr,
    sockets: Vec<StdListener>,
}

impl Bound {
    /// Binds `address` for `workers` workers. With port 0 all share the port that the first one gets.
    ///
    /// # Errors
    /// When the address is in use (by whomever: also by another perch), not ours, or not allowed.
    pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        // Without SO_REUSEPORT first: with it, a second perch on the same port would go unnoticed.
        if address.port() != 0 {
            drop(socket(address, false)?);
        }
        Self::beside(address, workers)
    }

    /// The same where this process listens already, on a listener that is about to be closed.
    ///
    /// # Errors
    /// When the address is not ours, or not allowed.
    pub fn beside(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let first = listening(address)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        while sockets.len() < workers {
            sockets.push(listening(address)?);
        }
        Ok(Self { address, sockets })
    }

    /// Sockets of one address that another process has opened and may still accept from. What is added so that every
    /// worker has one listens only once the workers do: a connection must not wait where nobody may ever accept it.
    ///
    /// # Errors
    /// When there is none, or one is no listening socket.
    pub fn adopt(given: Vec<StdListener>, workers: usize) -> io::Result<Self> {
        let first = given.first().ok_or(io::ErrorKind::NotFound)?;
        let address = first.local_addr()?;
        let spreads = SockRef::from(first).reuse_port().unwrap_or(false);
        let mut sockets = given;
        sockets.iter().try_for_each(|s| s.set_nonblocking(true))?;
        let shared: Vec<StdListener> = (sockets.len()..workers)
            .zip(sockets.iter().cycle())
            // A group of sockets is one user's; whoever isn't that user shares what was given.
            .map(
                |(_, given)| {
                    if spreads { socket(address, true).or_else(|_| given.try_clone()) } else { given.try_clone() }
                },
            )
            .collect::<io::Result<_>>()?;
        sockets.extend(shared);
        Ok(Self { address, sockets })
    }
}

fn listening(address: SocketAddr) -> io::Result<StdListener> {
    let socket = socket(address, true)?;
    SockRef::from(&socket).listen(BACKLOG)?;
    Ok(socket)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep a restart from its port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// When the system gives no thread or event queue.
    pub fn start(count: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut workers = Self { orders: Vec::new(), threads: Vec::new() };
        for n in 0..count {
            let (sender, receiver) = mpsc::unbounded_channel();
            let shared = shared.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
                LocalSet::new().block_on(&runtime, run(Rc::new(Worker::new(shared)), receiver));
            })?;
            workers.orders.push(sender);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.orders.len()
    }

    /// Starts accepting on a bound listener.
    pub fn listen(&self, name: &Arc<str>, bound: Bound, tls: Option<&Tls>) {
        let door = Arc::new(Door::new(name));
        // All of them, also when there are more than workers: nobody else accepts from the rest.
        for (worker, socket) in self.orders.iter().cycle().zip(bound.sockets) {
            let listens = SockRef::from(&socket);
            // Accepted sockets inherit it. Best effort: without it small writes wait for acknowledgements, but work.
            listens.set_tcp_nodelay(true).ok();
            if let Err(error) = listens.listen(BACKLOG) {
                tracing::error!(listener = %name, address = %bound.address, %error, "Cannot listen.");
            }
            order(worker, Order::Listen { door: door.clone(), socket, tls: tls.cloned() });
        }
    }

    /// New handshakes use `tls`.
    pub fn set_tls(&self, name: &Arc<str>, tls: Option<&Tls>) {
        for worker in &self.orders {
            order(worker, Order::SetTls { name: name.clone(), tls: tls.cloned() });
        }
    }

    /// Stops accepting on a listener; its connections live on.
    pub fn close(&self, name: &Arc<str>) {
        for worker in &self.orders {
            order(worker, Order::Close { name: name.clone() });
        }
    }

    /// The very sockets that the workers accept from, for another process to do so too, by listener.
    pub async fn share(&self) -> Vec<(Arc<str>, OwnedFd)> {
        let mut shared = Vec::new();
        for worker in &self.orders {
            let (with, given) = oneshot::channel();
            order(worker, Order::Share { with });
            // A worker that is gone has none.
            shared.extend(given.await.unwrap_or_default());
        }
        shared
    }

    /// Stops accepting, ends connections as their requests end, idle ones spread over `spread`. Ready when all are gone.
    pub async fn drain(&self, spread: Duration) {
        let mut waiting = Vec::new();
        for worker in &self.orders {
            let (done, wait) = oneshot::channel();
            order(worker, Order::Drain { spread, done });
            waiting.push(wait);
        }
        for wait in waiting {
            // A worker that is gone has no connections.
            wait.await.ok();
        }
    }

    /// Whether a worker has died, which it never should.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

/// A worker whose receiver is gone is seen by [`Workers::is_broken`].
fn order(worker: &mpsc::UnboundedSender<Order>, order: Order) {
    worker.send(order).ok();
}

/// A listener on one worker.
struct Listening {
    door: Arc<Door>,
    socket: Rc<TcpListener>,
    tls: SharedTls,
    accepting: Task<()>,
}

async fn run(worker: Rc<Worker>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut listening: Vec<Listening> = Vec::new();
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut drained: Option<oneshot::Sender<()>> = None;
    loop {
        if worker.registry.len() == 0
            && let Some(done) = drained.take()
        {
            done.send(()).ok();
        }
        let next = tokio::select! {
            order = orders.recv() => order,
            _ = sweep.tick() => {
                worker.sweep();
                continue;
            }
            () = worker.registry.emptied(), if drained.is_some() => continue,
        };
        match next {
            None => return,
            Some(Order::Listen { door, socket, tls }) => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let socket = Rc::new(socket);
                    let tls: SharedTls = Rc::new(RefCell::new(tls));
                    let task = accept(worker.clone(), door.clone(), socket.clone(), tls.clone());
                    let accepting = tokio::task::spawn_local(task);
                    listening.push(Listening { door, socket, tls, accepting });
                }
                Err(error) => tracing::error!(listener = %door.name, %error, "Cannot listen."),
            },
            Some(Order::SetTls { name, tls }) => {
                for l in listening.iter().filter(|l| l.door.name == name) {
                    l.tls.replace(tls.clone());
                }
            }
            Some(Order::Close { name }) => {
                let (closing, staying) = listening.drain(..).partition(|l| l.door.name == name);
                listening = staying;
                close(&worker, closing).await;
            }
            Some(Order::Share { with }) => {
                let again = |l: &Listening| Some((l.door.name.clone(), l.socket.as_fd().try_clone_to_owned().ok()?));
                // Whoever asked may have given up.
                with.send(listening.iter().filter_map(again).collect()).ok();
            }
            Some(Order::Drain { spread, done }) => {
                close(&worker, std::mem::take(&mut listening)).await;
                worker.start_drain(spread);
                drained = Some(done);
            }
        }
    }
}

async fn close(worker: &Rc<Worker>, listening: Vec<Listening>) {
    for l in listening {
        l.accepting.abort();
        // Only once its task has let go of the socket does dropping it here close it, with nobody in the backlog.
        l.accepting.await.ok();
        accept_rest(worker, &l.door, &l.socket, &l.tls);
    }
}

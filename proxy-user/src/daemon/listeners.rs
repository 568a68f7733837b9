//! The listening sockets. A reload binds new ones before it closes old ones.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::config::Config;
use crate::downstream::accept;
use crate::downstream::acceptor_threads;
use crate::engine::{EngineChoice, EngineKind};
use crate::session::{Shared, acme_http, serve_listener};

/// Listening sockets of all addresses, and the tasks that accept on them.
pub(super) struct Listeners {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Runtimes that accept connections: the main one, or one for each acceptor thread.
    acceptor_runtimes: Vec<Handle>,
    accepting: HashMap<Endpoint, Vec<JoinHandle<()>>>,
}

/// Address of a listening socket, by protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Endpoint {
    Tls(SocketAddr),
    Http(SocketAddr),
}

impl Endpoint {
    const fn address(self) -> SocketAddr {
        match self {
            Self::Tls(address) | Self::Http(address) => address,
        }
    }
}

/// Bound sockets that do not accept yet. Dropping them leaves the running listeners as they are.
pub(super) struct PreparedListeners<'l> {
    listeners: &'l mut Listeners,
    added: Vec<(Endpoint, Vec<TcpListener>)>,
    removed: Vec<Endpoint>,
}

impl Listeners {
    /// Starts the acceptor threads. With `engine = "packet"` or `"sockmap"` there are none: the main
    /// runtime receives the events of the flows, so it also accepts them.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub(super) fn new(shared: Arc<Shared>, tasks: TaskTracker) -> io::Result<Self> {
        let acceptor_runtimes = match shared.config.load().engine {
            EngineChoice::Only(EngineKind::Packet | EngineKind::Sockmap) => {
                vec![shared.main_runtime.clone()]
            }
            EngineChoice::Only(EngineKind::Copy | EngineKind::Splice) | EngineChoice::Auto => {
                acceptor_threads::spawn_all()?
            }
        };
        Ok(Self { shared, tasks, acceptor_runtimes, accepting: HashMap::new() })
    }

    /// Binds the addresses of a configuration that are not bound yet: all of them, or none.
    ///
    /// # Errors
    ///
    /// An address cannot be bound.
    pub(super) fn prepare(&mut self, config: &Config) -> Result<PreparedListeners<'_>> {
        let tls = config.listeners.iter().map(|listener| Endpoint::Tls(listener.address));
        let endpoints: Vec<Endpoint> = tls.chain(config.http.map(Endpoint::Http)).collect();
        let mut added = Vec::new();
        let is_new = |endpoint: &&Endpoint| !self.accepting.contains_key(endpoint);
        for &endpoint in endpoints.iter().filter(is_new) {
            let v6_only = is_v4_taken(endpoint.address(), &endpoints);
            let (key, bound) = match endpoint {
                Endpoint::Tls(address) => (
                    "listener",
                    accept::listen_tls(address, v6_only, &config.limits, &self.acceptor_runtimes),
                ),
                Endpoint::Http(address) => {
                    ("http", accept::listen_http(address, v6_only).map(|socket| vec![socket]))
                }
            };
            let sockets = bound.with_context(|| {
                format!("{key}.address: cannot listen on {}", endpoint.address())
            })?;
            added.push((endpoint, sockets));
        }
        let removed = self.accepting.keys().filter(|endpoint| !endpoints.contains(endpoint));
        Ok(PreparedListeners { added, removed: removed.copied().collect(), listeners: self })
    }

    /// Closes all listening sockets.
    pub(super) async fn stop_accepting(&mut self) {
        for task in self.accepting.drain().flat_map(|(_, tasks)| tasks) {
            task.abort();
            let _aborted = task.await;
        }
    }
}

impl PreparedListeners<'_> {
    /// Accepts on the new sockets, and closes those whose address the configuration lacks.
    pub(super) fn commit(self) {
        let Listeners { shared, tasks, acceptor_runtimes: runtimes, accepting } = self.listeners;
        for (endpoint, sockets) in self.added {
            let address = sockets.first().and_then(|socket| socket.local_addr().ok());
            let address = address.unwrap_or(endpoint.address());
            match endpoint {
                Endpoint::Tls(_) => info!(%address, "listening"),
                Endpoint::Http(_) => info!(%address, "listening for HTTP"),
            }
            let run = |(socket, runtime): (TcpListener, &Handle)| match endpoint {
                Endpoint::Tls(address) => {
                    let tasks = tasks.clone();
                    runtime.spawn(serve_listener(socket, address, Arc::clone(shared), tasks))
                }
                Endpoint::Http(_) => tokio::spawn(acme_http::run(socket, Arc::clone(shared))),
            };
            accepting.insert(endpoint, sockets.into_iter().zip(&*runtimes).map(run).collect());
        }
        for endpoint in self.removed {
            if let Some(tasks) = accepting.remove(&endpoint) {
                info!(address = %endpoint.address(), "stopped listening");
                tasks.iter().for_each(JoinHandle::abort);
            }
        }
    }
}

/// Returns whether an IPv4 address has the same port. `[::]` must then accept IPv6 only.
fn is_v4_taken(address: SocketAddr, all: &[Endpoint]) -> bool {
    let mut addresses = all.iter().map(|endpoint| endpoint.address());
    addresses.any(|other| other.is_ipv4() && other.port() == address.port())
}

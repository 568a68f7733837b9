//! The listening sockets: opened before they are needed, closed after they are not.

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

/// All addresses that are accepted on.
pub(super) struct Listeners {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Where connections are accepted.
    acceptor_runtimes: Vec<Handle>,
    accepting: HashMap<Endpoint, Vec<JoinHandle<()>>>,
}

/// An address and what is spoken there.
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

/// Sockets that are bound and not used yet: dropping them changes nothing.
pub(super) struct PreparedListeners<'l> {
    listeners: &'l mut Listeners,
    added: Vec<(Endpoint, Vec<TcpListener>)>,
    removed: Vec<Endpoint>,
}

impl Listeners {
    /// The packet engine and sockmap hear of their flows at home, so theirs begin there too.
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

    /// Binds what the configuration has and we have not; all of it or nothing.
    pub(super) fn prepare(&mut self, config: &Config) -> Result<PreparedListeners<'_>> {
        let tls = config.listeners.iter().map(|one| Endpoint::Tls(one.address));
        let endpoints: Vec<Endpoint> = tls.chain(config.http.map(Endpoint::Http)).collect();
        let mut added = Vec::new();
        for &endpoint in endpoints.iter().filter(|door| !self.accepting.contains_key(door)) {
            let v6_only = is_v4_taken(endpoint.address(), &endpoints);
            let (key, bound) = match endpoint {
                Endpoint::Tls(at) => (
                    "listener",
                    accept::listen_tls(at, v6_only, &config.limits, &self.acceptor_runtimes),
                ),
                Endpoint::Http(at) => {
                    ("http", accept::listen_http(at, v6_only).map(|socket| vec![socket]))
                }
            };
            let sockets = bound.with_context(|| {
                format!("{key}.address: cannot listen on {}", endpoint.address())
            })?;
            added.push((endpoint, sockets));
        }
        let removed = self.accepting.keys().filter(|door| !endpoints.contains(door));
        Ok(PreparedListeners { added, removed: removed.copied().collect(), listeners: self })
    }

    /// Stops accepting everywhere.
    pub(super) async fn stop_accepting(&mut self) {
        for task in self.accepting.drain().flat_map(|(_, tasks)| tasks) {
            task.abort();
            let _aborted = task.await;
        }
    }
}

impl PreparedListeners<'_> {
    /// Accepts on the fresh sockets and closes the stale ones.
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
                Endpoint::Tls(at) => {
                    runtime.spawn(serve_listener(socket, at, Arc::clone(shared), tasks.clone()))
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

/// Whether `0.0.0.0` of the same port is listened on too, so that `[::]` must leave IPv4 alone.
fn is_v4_taken(address: SocketAddr, all: &[Endpoint]) -> bool {
    let mut others = all.iter().map(|door| door.address());
    others.any(|other| other.is_ipv4() && other.port() == address.port())
}

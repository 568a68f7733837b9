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
use crate::conn::{Shared, accept, acceptor_threads, acme_http};
use crate::engine::{EngineChoice, EngineKind};

/// All addresses that are accepted on.
pub(super) struct Listeners {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Where connections are accepted.
    desks: Vec<Handle>,
    accepting: HashMap<Door, Vec<JoinHandle<()>>>,
}

/// An address and what is spoken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Door {
    Tls(SocketAddr),
    Http(SocketAddr),
}

impl Door {
    const fn address(self) -> SocketAddr {
        match self {
            Self::Tls(address) | Self::Http(address) => address,
        }
    }
}

/// Sockets that are bound and not used yet: dropping them changes nothing.
pub(super) struct Opened<'l> {
    listeners: &'l mut Listeners,
    fresh: Vec<(Door, Vec<TcpListener>)>,
    stale: Vec<Door>,
}

impl Listeners {
    /// The packet engine and sockmap hear of their flows at home, so theirs begin there too.
    pub(super) fn new(shared: Arc<Shared>, tasks: TaskTracker) -> io::Result<Self> {
        let desks = match shared.config.load().engine {
            EngineChoice::Only(EngineKind::Packet | EngineKind::Sockmap) => vec![shared.main_runtime.clone()],
            EngineChoice::Only(EngineKind::Copy | EngineKind::Splice) | EngineChoice::Auto => acceptor_threads::spawn_all()?,
        };
        Ok(Self { shared, tasks, desks, accepting: HashMap::new() })
    }

    /// Binds what the configuration has and we have not; all of it or nothing.
    pub(super) fn open(&mut self, config: &Config) -> Result<Opened<'_>> {
        let tls = config.listeners.iter().map(|one| Door::Tls(one.address));
        let wanted: Vec<Door> = tls.chain(config.http.map(Door::Http)).collect();
        let mut fresh = Vec::new();
        for &door in wanted.iter().filter(|door| !self.accepting.contains_key(door)) {
            let v6_only = is_v4_taken(door.address(), &wanted);
            let (key, bound) = match door {
                Door::Tls(at) => {
                    ("listener", accept::listen_tls(at, v6_only, &config.limits, &self.desks))
                }
                Door::Http(at) => {
                    ("http", accept::listen_http(at, v6_only).map(|socket| vec![socket]))
                }
            };
            let sockets = bound
                .with_context(|| format!("{key}.address: cannot listen on {}", door.address()))?;
            fresh.push((door, sockets));
        }
        let stale = self.accepting.keys().filter(|door| !wanted.contains(door));
        Ok(Opened { fresh, stale: stale.copied().collect(), listeners: self })
    }

    /// Stops accepting everywhere.
    pub(super) async fn close(&mut self) {
        for task in self.accepting.drain().flat_map(|(_, tasks)| tasks) {
            task.abort();
            let _aborted = task.await;
        }
    }
}

impl Opened<'_> {
    /// Accepts on the fresh sockets and closes the stale ones.
    pub(super) fn commit(self) {
        let Listeners { shared, tasks, desks, accepting } = self.listeners;
        for (door, sockets) in self.fresh {
            let address = sockets.first().and_then(|socket| socket.local_addr().ok());
            let address = address.unwrap_or(door.address());
            match door {
                Door::Tls(_) => info!(%address, "listening"),
                Door::Http(_) => info!(%address, "listening for HTTP"),
            }
            let run = |(socket, desk): (TcpListener, &Handle)| match door {
                Door::Tls(at) => {
                    desk.spawn(accept::run(socket, at, Arc::clone(shared), tasks.clone()))
                }
                Door::Http(_) => tokio::spawn(acme_http::run(socket, Arc::clone(shared))),
            };
            accepting.insert(door, sockets.into_iter().zip(&*desks).map(run).collect());
        }
        for door in self.stale {
            if let Some(tasks) = accepting.remove(&door) {
                info!(address = %door.address(), "no longer listening");
                tasks.iter().for_each(JoinHandle::abort);
            }
        }
    }
}

/// Whether `0.0.0.0` of the same port is listened on too, so that `[::]` must leave IPv4 alone.
fn is_v4_taken(address: SocketAddr, all: &[Door]) -> bool {
    let mut others = all.iter().map(|door| door.address());
    others.any(|other| other.is_ipv4() && other.port() == address.port())
}

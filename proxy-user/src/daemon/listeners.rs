//! The listening sockets: opened before they are needed, closed after they are not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::config::Config;
use crate::conn::{Shared, accept};

/// All addresses that are accepted on.
pub(super) struct Listeners {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    accepting: HashMap<SocketAddr, JoinHandle<()>>,
}

/// Sockets that are bound and not used yet: dropping them changes nothing.
pub(super) struct Opened<'l> {
    listeners: &'l mut Listeners,
    fresh: Vec<(SocketAddr, TcpListener)>,
    stale: Vec<SocketAddr>,
}

impl Listeners {
    pub(super) fn new(shared: Arc<Shared>, tasks: TaskTracker) -> Self {
        Self { shared, tasks, accepting: HashMap::new() }
    }

    /// Binds what the configuration has and we have not; all of it or nothing.
    pub(super) fn open(&mut self, config: &Config) -> Result<Opened<'_>> {
        let wanted: Vec<SocketAddr> = config.listeners.iter().map(|one| one.address).collect();
        let mut fresh = Vec::new();
        for &address in wanted.iter().filter(|address| !self.accepting.contains_key(address)) {
            let socket = accept::listen(address, is_v4_taken(address, &wanted), &config.limits)
                .with_context(|| format!("listener.address: cannot listen on {address}"))?;
            fresh.push((address, socket));
        }
        let stale = self.accepting.keys().filter(|address| !wanted.contains(address));
        Ok(Opened { fresh, stale: stale.copied().collect(), listeners: self })
    }

    /// Stops accepting everywhere.
    pub(super) async fn close(&mut self) {
        for (_, task) in self.accepting.drain() {
            task.abort();
            let _aborted = task.await;
        }
    }
}

impl Opened<'_> {
    /// Accepts on the fresh sockets and closes the stale ones.
    pub(super) fn commit(self) {
        let Listeners { shared, tasks, accepting } = self.listeners;
        for (address, socket) in self.fresh {
            info!(address = %socket.local_addr().unwrap_or(address), "listening");
            let run = accept::run(socket, address, Arc::clone(shared), tasks.clone());
            accepting.insert(address, tokio::spawn(run));
        }
        for address in self.stale {
            if let Some(task) = accepting.remove(&address) {
                info!(%address, "no longer listening");
                task.abort();
            }
        }
    }
}

/// Whether `0.0.0.0` of the same port is listened on too, so that `[::]` must leave IPv4 alone.
fn is_v4_taken(address: SocketAddr, all: &[SocketAddr]) -> bool {
    all.iter().any(|other| other.is_ipv4() && other.port() == address.port())
}

//! Detection of connections that the agent opens to its own listeners.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Addresses of the connections to back ends on this host: the destinations by source. A client with such a source
/// and destination is the agent itself. A clone shares them.
///
/// The source alone does not tell: the kernel may give the same source address and port to connections with other
/// destinations (`__inet_hash_connect`).
#[derive(Clone, Debug, Default)]
pub(crate) struct LoopDetector(Arc<Mutex<HashMap<SocketAddr, Vec<SocketAddr>>>>);

/// Registration of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct LoopGuard {
    detector: LoopDetector,
    source: SocketAddr,
    destination: SocketAddr,
}

impl LoopDetector {
    /// Registers a connection to a back end, if that is on this host: the kernel then chooses the destination as the
    /// source address, or another loopback address.
    pub(crate) fn register(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<LoopGuard> {
        let [source, destination] = [source, destination].map(canonical);
        let is_loopback = source.ip().is_loopback() && destination.ip().is_loopback();
        if source.ip() != destination.ip() && !is_loopback {
            return None;
        }
        self.lock().entry(source).or_default().push(destination);
        Some(LoopGuard { detector: self.clone(), source, destination })
    }

    /// Whether the agent itself opened the connection from `source`. `destination` returns the address that it was
    /// accepted on; it is called only if the agent uses the source.
    ///
    /// The answer is valid once the first bytes have arrived: the agent registers a connection before it sends on it.
    pub(crate) fn is_loop(
        &self,
        source: SocketAddr,
        destination: impl FnOnce() -> io::Result<SocketAddr>,
    ) -> bool {
        let Some(destinations) = self.lock().get(&canonical(source)).cloned() else { return false };
        destination().is_ok_and(|destination| destinations.contains(&canonical(destination)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv4 address as such, where a socket of IPv6 has it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Drop for LoopGuard {
    fn drop(&mut self) {
        let mut connections = self.detector.lock();
        let Some(destinations) = connections.get_mut(&self.source) else { return };
        if let Some(index) = destinations.iter().position(|other| *other == self.destination) {
            destinations.swap_remove(index);
        }
        if destinations.is_empty() {
            connections.remove(&self.source);
        }
    }
}

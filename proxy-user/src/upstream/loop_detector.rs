//! Detection of connections that the agent opens to its own listeners.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Local addresses of the connections to back ends on this host. A client with such an address is the agent
/// itself. A clone shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoopDetector(Arc<Mutex<HashSet<SocketAddr>>>);

/// Registration of a local address, until it is dropped.
#[derive(Debug)]
pub(crate) struct LoopGuard {
    detector: LoopDetector,
    address: SocketAddr,
}

impl LoopDetector {
    /// Registers the local address of a connection to a back end on this host.
    pub(super) fn register(&self, address: SocketAddr) -> LoopGuard {
        self.lock().insert(address);
        LoopGuard { detector: self.clone(), address }
    }

    /// Whether the agent itself opened the connection that comes from `client_addr`.
    ///
    /// The answer is valid once the hello has arrived: the agent registers the local address of a
    /// connection before it forwards a hello on it.
    pub(crate) fn is_loop(&self, client_addr: SocketAddr) -> bool {
        self.lock().contains(&client_addr)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LoopGuard {
    fn drop(&mut self) {
        self.detector.lock().remove(&self.address);
    }
}

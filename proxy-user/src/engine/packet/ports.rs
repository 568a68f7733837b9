//! Source ports for connections to back ends. A flow that has left its sockets still needs its port, and
//! the kernel no longer knows of it: so these ports are ours, out of a range that the kernel gives to
//! nobody (`net.ipv4.ip_local_port_range`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a port rests. What is late of its last flow is then over, or has to prove itself by its
/// timestamp (RFC 7323 §5).
const QUARANTINE: Duration = Duration::from_secs(1);

/// The ports of a range, for each back end anew.
#[derive(Debug)]
pub(crate) struct PortAllocator {
    range: RangeInclusive<u16>,
    pools: Mutex<HashMap<SocketAddr, PortPool>>,
}

/// The ports towards one back end.
#[derive(Debug, Default)]
struct PortPool {
    /// How many were given out at all, from the beginning of the range on.
    next_offset: u16,
    /// Those that were given back, and since when.
    free: VecDeque<(Instant, u16)>,
    /// Those that flows of a former agent had: not to be begun with.
    adopted: HashSet<u16>,
    /// Bytes of a segment that our kernel tells it that we can take, as of late.
    advertised_mss: Option<u32>,
}

/// A port that nobody else has; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct PortLease {
    ports: Arc<PortAllocator>,
    backend: SocketAddr,
    port: u16,
    /// Bytes of a segment that the SYN from it offers, if it was changed.
    pub(super) clamped_mss: Option<u32>,
}

impl PortAllocator {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, pools: Mutex::default() }
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<SocketAddr, PortPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port that has rested longest; `None` if all are in use or have not rested enough.
    pub(crate) fn lease(self: &Arc<Self>, backend: SocketAddr) -> Option<PortLease> {
        let port = self.pools().entry(backend).or_default().allocate(&self.range)?;
        Some(PortLease { ports: Arc::clone(self), backend, port, clamped_mss: None })
    }

    /// The port of a flow that was there before us.
    pub(super) fn reserve_adopted(self: &Arc<Self>, backend: SocketAddr, port: u16) -> PortLease {
        self.pools().entry(backend).or_default().adopted.insert(port);
        PortLease { ports: Arc::clone(self), backend, port, clamped_mss: None }
    }

    /// The port of one that had ended before, and rests since then. To be told of the latest first: a port may
    /// be told of twice, if what is left of its last flow but one was not erased yet, and not at all if it is
    /// one's that runs.
    pub(super) fn quarantine(&self, backend: SocketAddr, port: u16, since: Instant) {
        let mut used = self.pools();
        let pool = used.entry(backend).or_default();
        if pool.adopted.insert(port) {
            pool.free.push_front((since, port));
        }
    }
}

impl PortPool {
    fn allocate(&mut self, range: &RangeInclusive<u16>) -> Option<u16> {
        let next = |offset| range.start().checked_add(offset).filter(|port| range.contains(port));
        while let Some(port) = next(self.next_offset) {
            self.next_offset += 1;
            if !self.adopted.contains(&port) {
                return Some(port);
            }
        }
        let (_, port) = self.free.pop_front_if(|(since, _)| since.elapsed() >= QUARANTINE)?;
        Some(port)
    }
}

impl PortLease {
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of a segment that the back end is told, if that is known.
    pub(super) fn advertised_mss(&self) -> Option<u32> {
        self.ports.pools().get(&self.backend)?.advertised_mss
    }

    /// What it was told.
    pub(super) fn record_mss(&self, advmss: u32) {
        if let Some(pool) = self.ports.pools().get_mut(&self.backend) {
            pool.advertised_mss = Some(advmss);
        }
    }

    /// The back end that the port is leased for.
    pub(super) const fn backend(&self) -> SocketAddr {
        self.backend
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        if let Some(pool) = self.ports.pools().get_mut(&self.backend) {
            pool.free.push_back((Instant::now(), self.port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_port_is_leased_only_after_quarantine() {
        let ports = Arc::new(PortAllocator::new(65_534..=65_535));
        let to = ([10, 0, 0, 1], 443).into();
        let adopted = ports.reserve_adopted(to, 65_534);
        assert_eq!(ports.lease(to).unwrap().port(), 65_535);
        drop(adopted);
        assert!(ports.lease(to).is_none(), "neither has rested");
    }

    #[test]
    fn a_port_quarantined_before_is_leased_at_once() {
        let ports = PortAllocator::new(65_534..=65_535);
        let (to, now) = (([10, 0, 0, 1], 443).into(), Instant::now());
        ports.quarantine(to, 65_535, now);
        ports.quarantine(to, 65_534, now.checked_sub(QUARANTINE).unwrap());
        let ports = Arc::new(ports);
        let lease = ports.lease(to).unwrap();
        assert_eq!(lease.port(), 65_534);
        assert!(ports.lease(to).is_none());
    }

    #[test]
    fn a_port_adopted_twice_is_leased_once() {
        let ports = Arc::new(PortAllocator::new(65_533..=65_535));
        let (to, now) = (([10, 0, 0, 1], 443).into(), Instant::now());
        let _running = ports.reserve_adopted(to, 65_533);
        ports.quarantine(to, 65_534, now);
        for port in [65_533, 65_534] {
            ports.quarantine(to, port, now.checked_sub(QUARANTINE).unwrap());
        }
        assert_eq!(ports.lease(to).unwrap().port(), 65_535);
        assert!(ports.lease(to).is_none(), "one has a flow, and the other has not rested");
    }

    #[test]
    fn a_returned_port_is_quarantined() {
        let ports = Arc::new(PortAllocator::new(65_534..=65_535));
        let (one, other) = (([10, 0, 0, 1], 443).into(), ([10, 0, 0, 2], 443).into());
        let first = ports.lease(one).unwrap();
        let second = ports.lease(one).unwrap();
        assert_eq!((first.port(), second.port()), (65_534, 65_535));
        assert!(ports.lease(one).is_none(), "both are in use");
        assert_eq!(ports.lease(other).unwrap().port(), 65_534, "another back end has its own");
        drop(second);
        drop(first);
        assert!(ports.lease(one).is_none(), "neither has rested");
        let mut used = ports.pools();
        for (since, _) in &mut used.get_mut(&one).unwrap().free {
            *since -= QUARANTINE;
        }
        drop(used);
        assert_eq!(ports.lease(one).unwrap().port(), 65_535, "the first to be given back");
    }
}

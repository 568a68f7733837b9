//! Source ports of connections to back ends that the packet engine may take over.
//!
//! An offloaded flow still uses its port, and the kernel does not know that. So the agent leases ports
//! itself, from a range outside of `net.ipv4.ip_local_port_range`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time from the end of a lease until the port can be leased again. Packets of the last flow have
/// arrived by then, or PAWS rejects them by their timestamp (RFC 7323 §5).
const QUARANTINE: Duration = Duration::from_secs(1);

/// Allocator of source ports. Each back end has the whole range.
#[derive(Debug)]
pub(crate) struct PortAllocator {
    range: RangeInclusive<u16>,
    pools: Mutex<HashMap<SocketAddr, PortPool>>,
}

/// Ports of one back end.
#[derive(Debug, Default)]
struct PortPool {
    /// Offset in the range of the first port that was never leased.
    next_offset: u16,
    /// Ports whose lease ended, with the time of that, oldest first.
    free: VecDeque<(Instant, u16)>,
    /// Ports of adopted flows, which `next_offset` must pass over.
    adopted: HashSet<u16>,
    /// MSS in bytes that this kernel last advertised to the back end.
    advertised_mss: Option<u32>,
}

/// Lease of a port. Dropping it ends the lease.
#[derive(Debug)]
pub(crate) struct PortLease {
    ports: Arc<PortAllocator>,
    backend: SocketAddr,
    port: u16,
    /// MSS in bytes that the clamped SYN offered; `None` if the SYN was not clamped.
    pub(super) clamped_mss: Option<u32>,
}

impl PortAllocator {
    /// Creates an allocator for a range.
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, pools: Mutex::default() }
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<SocketAddr, PortPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases a new port, or the one whose quarantine ended first; `None` if there is none.
    pub(crate) fn lease(self: &Arc<Self>, backend: SocketAddr) -> Option<PortLease> {
        let port = self.pools().entry(backend).or_default().allocate(&self.range)?;
        Some(PortLease { ports: Arc::clone(self), backend, port, clamped_mss: None })
    }

    /// Leases the port of an adopted flow.
    pub(super) fn reserve_adopted(self: &Arc<Self>, backend: SocketAddr, port: u16) -> PortLease {
        self.pools().entry(backend).or_default().adopted.insert(port);
        PortLease { ports: Arc::clone(self), backend, port, clamped_mss: None }
    }

    /// Puts the port of an ended flow of a previous agent in quarantine, which started at `since`.
    ///
    /// Call it for the latest end first. It has no effect on a port that is adopted already: the maps may
    /// hold two ended flows of a port, or an ended and a running one.
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
    /// The leased port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// MSS in bytes that this kernel advertises to the back end, if it has been seen.
    pub(super) fn advertised_mss(&self) -> Option<u32> {
        self.ports.pools().get(&self.backend)?.advertised_mss
    }

    /// Records the MSS that this kernel advertised to the back end.
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
        assert!(ports.lease(to).is_none(), "neither has had its quarantine");
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
        assert!(ports.lease(to).is_none(), "one has a flow, and the other one is in quarantine");
    }

    #[test]
    fn a_returned_port_is_quarantined() {
        let ports = Arc::new(PortAllocator::new(65_534..=65_535));
        let (one, other) = (([10, 0, 0, 1], 443).into(), ([10, 0, 0, 2], 443).into());
        let first = ports.lease(one).unwrap();
        let second = ports.lease(one).unwrap();
        assert_eq!((first.port(), second.port()), (65_534, 65_535));
        assert!(ports.lease(one).is_none(), "both are leased");
        assert_eq!(
            ports.lease(other).unwrap().port(),
            65_534,
            "another back end has the whole range"
        );
        drop(second);
        drop(first);
        assert!(ports.lease(one).is_none(), "neither has had its quarantine");
        let mut used = ports.pools();
        for (since, _) in &mut used.get_mut(&one).unwrap().free {
            *since -= QUARANTINE;
        }
        drop(used);
        assert_eq!(ports.lease(one).unwrap().port(), 65_535, "the lease that ended first");
    }
}

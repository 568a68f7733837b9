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
const REST: Duration = Duration::from_secs(1);

/// The ports of a range, for each back end anew.
#[derive(Debug)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    used: Mutex<HashMap<SocketAddr, Pool>>,
}

/// The ports towards one back end.
#[derive(Debug, Default)]
struct Pool {
    /// How many were given out at all, from the beginning of the range on.
    begun: u16,
    /// Those that were given back, and since when.
    free: VecDeque<(Instant, u16)>,
    /// Those that flows of a former agent had: not to be begun with.
    inherited: HashSet<u16>,
    /// Bytes of a segment that our kernel tells it that we can take, as of late.
    told_mss: Option<u32>,
}

/// A port that nobody else has; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    ports: Arc<Ports>,
    to: SocketAddr,
    port: u16,
    /// Bytes of a segment that the SYN from it offers, if it was changed.
    pub(super) offered: Option<u32>,
}

impl Ports {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, used: Mutex::default() }
    }

    fn used(&self) -> MutexGuard<'_, HashMap<SocketAddr, Pool>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port that has rested longest; `None` if all are in use or have not rested enough.
    pub(crate) fn lease(self: &Arc<Self>, to: SocketAddr) -> Option<Lease> {
        let port = self.used().entry(to).or_default().take(&self.range)?;
        Some(Lease { ports: Arc::clone(self), to, port, offered: None })
    }

    /// The port of a flow that was there before us.
    pub(super) fn inherit(self: &Arc<Self>, to: SocketAddr, port: u16) -> Lease {
        self.used().entry(to).or_default().inherited.insert(port);
        Lease { ports: Arc::clone(self), to, port, offered: None }
    }

    /// The port of one that had ended before, and rests since then. To be told of the latest first: a port may
    /// be told of twice, if what is left of its last flow but one was not erased yet, and not at all if it is
    /// one's that runs.
    pub(super) fn rest(&self, to: SocketAddr, port: u16, since: Instant) {
        let mut used = self.used();
        let pool = used.entry(to).or_default();
        if pool.inherited.insert(port) {
            pool.free.push_front((since, port));
        }
    }
}

impl Pool {
    fn take(&mut self, range: &RangeInclusive<u16>) -> Option<u16> {
        let next = |begun| range.start().checked_add(begun).filter(|port| range.contains(port));
        while let Some(port) = next(self.begun) {
            self.begun += 1;
            if !self.inherited.contains(&port) {
                return Some(port);
            }
        }
        let (_, port) = self.free.pop_front_if(|(since, _)| since.elapsed() >= REST)?;
        Some(port)
    }
}

impl Lease {
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of a segment that the back end is told, if that is known.
    pub(super) fn told_mss(&self) -> Option<u32> {
        self.ports.used().get(&self.to)?.told_mss
    }

    /// What it was told.
    pub(super) fn learn_mss(&self, told: u32) {
        if let Some(pool) = self.ports.used().get_mut(&self.to) {
            pool.told_mss = Some(told);
        }
    }

    /// The back end, and the port.
    pub(super) const fn place(&self) -> (SocketAddr, u16) {
        (self.to, self.port)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pool) = self.ports.used().get_mut(&self.to) {
            pool.free.push_back((Instant::now(), self.port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_port_is_not_given_out_before_it_rests() {
        let ports = Arc::new(Ports::new(65_534..=65_535));
        let to = ([10, 0, 0, 1], 443).into();
        let inherited = ports.inherit(to, 65_534);
        assert_eq!(ports.lease(to).unwrap().port(), 65_535);
        drop(inherited);
        assert!(ports.lease(to).is_none(), "neither has rested");
    }

    #[test]
    fn a_port_that_has_rested_before_need_not_again() {
        let ports = Ports::new(65_534..=65_535);
        let (to, now) = (([10, 0, 0, 1], 443).into(), Instant::now());
        ports.rest(to, 65_535, now);
        ports.rest(to, 65_534, now.checked_sub(REST).unwrap());
        let ports = Arc::new(ports);
        let lease = ports.lease(to).unwrap();
        assert_eq!(lease.port(), 65_534);
        assert!(ports.lease(to).is_none());
    }

    #[test]
    fn a_port_that_is_inherited_twice_is_one() {
        let ports = Arc::new(Ports::new(65_533..=65_535));
        let (to, now) = (([10, 0, 0, 1], 443).into(), Instant::now());
        let _running = ports.inherit(to, 65_533);
        ports.rest(to, 65_534, now);
        for port in [65_533, 65_534] {
            ports.rest(to, port, now.checked_sub(REST).unwrap());
        }
        assert_eq!(ports.lease(to).unwrap().port(), 65_535);
        assert!(ports.lease(to).is_none(), "one has a flow, and the other has not rested");
    }

    #[test]
    fn a_port_is_one_flows_and_rests() {
        let ports = Arc::new(Ports::new(65_534..=65_535));
        let (one, other) = (([10, 0, 0, 1], 443).into(), ([10, 0, 0, 2], 443).into());
        let first = ports.lease(one).unwrap();
        let second = ports.lease(one).unwrap();
        assert_eq!((first.port(), second.port()), (65_534, 65_535));
        assert!(ports.lease(one).is_none(), "both are in use");
        assert_eq!(ports.lease(other).unwrap().port(), 65_534, "another back end has its own");
        drop(second);
        drop(first);
        assert!(ports.lease(one).is_none(), "neither has rested");
        let mut used = ports.used();
        for (since, _) in &mut used.get_mut(&one).unwrap().free {
            *since -= REST;
        }
        drop(used);
        assert_eq!(ports.lease(one).unwrap().port(), 65_535, "the first to be given back");
    }
}

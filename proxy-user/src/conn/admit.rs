//! Who may come in: caps on connections, on those that have not said their hello, and on sources.
//!
//! A permit is held for as long as its connection; dropping it is what counts down. The numbers
//! survive a reload, the limits are those of the configuration that a connection came under.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use snisplit_common::limits::{SourcePrefix, TokenBucket};

use crate::config::Limits;

/// Connections of one source that may wait with their hello beyond its cap on flows: a CA's
/// validations must get as far as being told from others.
const VALIDATIONS: usize = 16;

/// Why a connection is turned away; the word in counters and logs.
pub(super) type Refusal = &'static str;

/// The door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    peeking: usize,
    peeking_of: HashMap<SourcePrefix, usize>,
    flows_of: HashMap<SourcePrefix, usize>,
    /// Addresses that we dial back ends of this very host from.
    own: HashSet<SocketAddr>,
    rate: Option<(u32, Instant, TokenBucket)>,
}

/// A place inside, for a connection that has still to say its hello.
#[derive(Debug)]
pub(super) struct Waiting {
    door: Door,
    source: Option<SourcePrefix>,
}

/// A place inside, for any connection.
#[derive(Debug)]
pub(super) struct Present(Door);

/// A place among the flows of a source.
#[derive(Debug)]
pub(super) struct Flow {
    door: Door,
    source: SourcePrefix,
}

/// An address of ours that must not come back to us.
#[derive(Debug)]
pub(super) struct OwnAddress {
    door: Door,
    address: SocketAddr,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, to say its hello. A trusted proxy is no source: it speaks for many.
    pub(super) fn enter(
        &self,
        from: SocketAddr,
        is_proxy: bool,
        limits: &Limits,
    ) -> Result<(Present, Waiting), Refusal> {
        let source = (!is_proxy).then(|| SourcePrefix::from_address(from.ip()));
        let mut inside = self.lock();
        if inside.all >= limits.max_connections {
            return Err("max_connections");
        }
        if inside.peeking >= limits.max_peeking {
            return Err("max_peeking");
        }
        if let Some(source) = source {
            let waiting = inside.peeking_of.get(&source).copied().unwrap_or_default();
            if waiting >= limits.per_source.saturating_add(VALIDATIONS) {
                return Err("per_source");
            }
        }
        if !inside.in_rate(limits.accept_rate) {
            return Err("accept_rate");
        }
        inside.all += 1;
        inside.peeking += 1;
        if let Some(source) = source {
            *inside.peeking_of.entry(source).or_default() += 1;
        }
        Ok((Present(self.clone()), Waiting { door: self.clone(), source }))
    }

    /// Counts a flow against its source.
    pub(super) fn begin(&self, client: IpAddr, limits: &Limits) -> Result<Flow, Refusal> {
        let source = SourcePrefix::from_address(client);
        let mut inside = self.lock();
        let flows = inside.flows_of.entry(source).or_default();
        if *flows >= limits.per_source {
            return Err("per_source");
        }
        *flows += 1;
        Ok(Flow { door: self.clone(), source })
    }

    /// Whether a connection that has said its hello is one that we dialled ourselves. Not before:
    /// the address is noted before the hello is sent.
    pub(super) fn is_own(&self, from: SocketAddr) -> bool {
        self.lock().own.contains(&from)
    }

    /// Notes an address that we dial this very host from.
    pub(super) fn dials_from(&self, address: SocketAddr) -> OwnAddress {
        self.lock().own.insert(address);
        OwnAddress { door: self.clone(), address }
    }
}

impl Inside {
    /// `rate` connections a second, and as many at once; 0 is no limit.
    fn in_rate(&mut self, rate: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let (_, begun, bucket) = match self.rate.take() {
            Some(same) if same.0 == rate => self.rate.insert(same),
            _ => self.rate.insert((rate, Instant::now(), TokenBucket::new(rate, rate))),
        };
        bucket.try_acquire(begun.elapsed())
    }
}

fn count_down(counts: &mut HashMap<SourcePrefix, usize>, source: SourcePrefix) {
    if let Entry::Occupied(mut entry) = counts.entry(source) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inside = self.door.lock();
        inside.peeking -= 1;
        if let Some(source) = self.source {
            count_down(&mut inside.peeking_of, source);
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.lock().all -= 1;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        count_down(&mut self.door.lock().flows_of, self.source);
    }
}

impl Drop for OwnAddress {
    fn drop(&mut self) {
        self.door.lock().own.remove(&self.address);
    }
}

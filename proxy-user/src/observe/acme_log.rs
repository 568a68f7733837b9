//! A line at INFO for each ACME decision: a certificate that does not come is looked for here.
//!
//! CAs validate from several networks and failing clients ask again and again, so lines are limited;
//! the next line that gets through says how many did not.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use snisplit_common::limits::TokenBucket;
use tracing::info;

use super::metrics::Acme;

/// Lines a second, and lines at once.
const RATE: u32 = 5;
const BURST: u32 = 50;

/// Tells decisions, but not too many.
#[derive(Debug)]
pub(crate) struct AcmeLog {
    begun: Instant,
    state: Mutex<(TokenBucket, u64)>,
}

impl Default for AcmeLog {
    fn default() -> Self {
        Self { begun: Instant::now(), state: Mutex::new((TokenBucket::new(RATE, BURST), 0)) }
    }
}

impl AcmeLog {
    /// `sni` is the name that was asked for, `route` the one that claims it.
    pub(crate) fn tell(&self, sni: Option<&str>, route: Option<&str>, acme: &Acme, by: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, held_back) = &mut *state;
        if !bucket.try_acquire(self.begun.elapsed()) {
            *held_back += 1;
            return;
        }
        let held_back = std::mem::take(held_back);
        drop(state);
        let (class, decision, reason) = (acme.class, acme.decision, acme.reason);
        info!(sni, route, class, decision, reason, by, held_back, "ACME validation");
    }
}

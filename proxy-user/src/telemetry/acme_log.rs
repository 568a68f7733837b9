//! A line at INFO for each ACME decision: a certificate that does not come is looked for here.
//!
//! CAs validate from several networks and failing clients ask again and again, so lines are limited;
//! the next line that gets through says how many did not.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use snisplit_common::limits::TokenBucket;
use tracing::info;

use super::metrics::AcmeLabels;

/// Lines a second, and lines at once.
const LINES_PER_SECOND: u32 = 5;
const BURST_LINES: u32 = 50;

/// Tells decisions, but not too many.
#[derive(Debug)]
pub(crate) struct AcmeLog {
    created_at: Instant,
    state: Mutex<(TokenBucket, u64)>,
}

impl Default for AcmeLog {
    fn default() -> Self {
        Self {
            created_at: Instant::now(),
            state: Mutex::new((TokenBucket::new(LINES_PER_SECOND, BURST_LINES), 0)),
        }
    }
}

impl AcmeLog {
    /// `sni` is the name that was asked for, `route` the one that claims it.
    pub(crate) fn log(
        &self,
        sni: Option<&str>,
        route: Option<&str>,
        acme: &AcmeLabels,
        challenge: &str,
    ) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, suppressed) = &mut *state;
        if !bucket.try_acquire(self.created_at.elapsed()) {
            *suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(suppressed);
        drop(state);
        let (class, action, reason) = (acme.class, acme.action, acme.reason);
        info!(sni, route, class, action, reason, challenge, suppressed, "ACME validation");
    }
}

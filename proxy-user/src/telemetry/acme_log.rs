//! The log of ACME validations: one line at level INFO for each, to find out why a CA issues no
//! certificate.
//!
//! CAs validate from several networks, and failing ACME clients retry. The log therefore has a rate
//! limit. Each line counts the lines that were left out before it (`suppressed`).

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use snisplit_common::limits::TokenBucket;
use tracing::info;

use super::metrics::AcmeLabels;

const LINES_PER_SECOND: u32 = 5;
const BURST_LINES: u32 = 50;

/// Log of ACME validations with a rate limit.
#[derive(Debug)]
pub(crate) struct AcmeLog {
    created_at: Instant,
    state: Mutex<RateLimit>,
}

#[derive(Debug)]
struct RateLimit {
    bucket: TokenBucket,
    /// Lines that were left out since the last one.
    suppressed: u64,
}

impl Default for AcmeLog {
    fn default() -> Self {
        Self {
            created_at: Instant::now(),
            state: Mutex::new(RateLimit {
                bucket: TokenBucket::new(LINES_PER_SECOND, BURST_LINES),
                suppressed: 0,
            }),
        }
    }
}

impl AcmeLog {
    /// Logs the decision about a validation. `route` is the route that owns the server name `sni`.
    pub(crate) fn log(
        &self,
        sni: Option<&str>,
        route: Option<&str>,
        acme: &AcmeLabels,
        challenge: &str,
    ) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.bucket.try_acquire(self.created_at.elapsed()) {
            state.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut state.suppressed);
        drop(state);
        let (class, action, reason) = (acme.class, acme.action, acme.reason);
        info!(sni, route, class, action, reason, challenge, suppressed, "ACME validation");
    }
}

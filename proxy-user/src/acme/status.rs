//! What is said of a certificate that is kept, and what failed: `status.json`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use snisplit_common::renewal::{FailureKind, OrderFailure, RenewalInput};

use super::Wish;

/// `status.json`; times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Status {
    pub(crate) names: Vec<String>,
    pub(crate) challenge: String,
    /// When the next order is due.
    pub(crate) next: u64,
    pub(crate) last_error: Option<String>,
    pub(super) failure: Option<Failed>,
}

/// Failures survive a restart: an agent that is restarted in a loop must not ask in one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Failed {
    count: u32,
    at: u64,
    unreachable: bool,
    retry_after: Option<u64>,
}

impl Status {
    pub(super) fn new(
        wish: &Wish,
        due: SystemTime,
        situation: &RenewalInput,
        last_error: Option<String>,
    ) -> Self {
        Self {
            names: wish.names.clone(),
            challenge: wish.challenge.name().to_owned(),
            next: seconds(due),
            last_error,
            failure: situation.failure.map(|failure| Failed {
                count: failure.count,
                at: seconds(failure.failed_at),
                unreachable: failure.kind == FailureKind::Unreachable,
                retry_after: failure.retry_after.map(seconds),
            }),
        }
    }
}

impl Failed {
    pub(super) fn failure(&self) -> OrderFailure {
        OrderFailure {
            count: self.count,
            failed_at: time(self.at),
            kind: match self.unreachable {
                true => FailureKind::Unreachable,
                false => FailureKind::Rejected,
            },
            retry_after: self.retry_after.map(time),
        }
    }
}

/// As people read it, in UTC.
pub(crate) fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(crate) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

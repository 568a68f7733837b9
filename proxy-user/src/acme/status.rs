//! The status of an ordered certificate: `status.json`, which survives a restart and which
//! `snisplit certs` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use snisplit_common::renewal::{FailureKind, OrderFailure, RenewalInput};

use super::spec::CertificateSpec;

/// Content of `status.json`. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct CertificateStatus {
    pub(crate) names: Vec<String>,
    pub(crate) challenge: String,
    /// Time of the next order.
    pub(crate) next: u64,
    pub(crate) last_error: Option<String>,
    pub(super) failure: Option<StoredFailure>,
}

/// Failed orders. They are stored so that an agent in a restart loop does not order in a loop.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct StoredFailure {
    count: u32,
    at: u64,
    unreachable: bool,
    retry_after: Option<u64>,
}

impl CertificateStatus {
    pub(super) fn new(
        spec: &CertificateSpec,
        due: SystemTime,
        renewal: &RenewalInput,
        last_error: Option<String>,
    ) -> Self {
        Self {
            names: spec.names.clone(),
            challenge: spec.challenge.label().to_owned(),
            next: to_unix_seconds(due),
            last_error,
            failure: renewal.failure.map(|failure| StoredFailure {
                count: failure.count,
                at: to_unix_seconds(failure.failed_at),
                unreachable: failure.kind == FailureKind::Unreachable,
                retry_after: failure.retry_after.map(to_unix_seconds),
            }),
        }
    }
}

impl StoredFailure {
    pub(super) fn to_failure(&self) -> OrderFailure {
        OrderFailure {
            count: self.count,
            failed_at: from_unix_seconds(self.at),
            kind: match self.unreachable {
                true => FailureKind::Unreachable,
                false => FailureKind::Rejected,
            },
            retry_after: self.retry_after.map(from_unix_seconds),
        }
    }
}

/// Formats a time in UTC (RFC 3339, whole seconds).
pub(crate) fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(crate) fn from_unix_seconds(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn to_unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

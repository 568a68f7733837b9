//! Metrics, access log, and log of ACME validations.

pub(crate) mod access_log;
mod acme_log;
pub(crate) mod metrics;
mod outcome;
pub(crate) mod record;

pub(crate) use access_log::{AccessLog, BackendEndpoint};
pub(crate) use acme_log::AcmeLog;
pub(crate) use metrics::Metrics;
pub(crate) use outcome::{Outcome, RejectReason};
pub(crate) use record::Record;

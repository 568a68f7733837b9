//! Metrics, access log, log of ACME validations, and admin port.

pub(crate) mod access_log;
mod acme_log;
pub(crate) mod admin;
pub(crate) mod metrics;
pub(crate) mod record;

pub(crate) use access_log::{AccessLog, BackendEndpoint};
pub(crate) use acme_log::AcmeLog;
pub(crate) use metrics::Metrics;
pub(crate) use record::{Outcome, Record};

//! The back end's side: name resolution, balancing, connections and health.

pub(crate) mod connect;
pub(crate) mod dialer;
pub(crate) mod first_byte;
pub(crate) mod health_check;
pub(crate) mod loop_detector;
pub(crate) mod proxy_header;
pub(crate) mod resolve;
pub(crate) mod select;

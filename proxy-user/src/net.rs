//! The network of the host: policy routing, interfaces, and features of their drivers.

use tracing::warn;

use crate::config::Config;

pub(crate) mod host;
mod interfaces;
mod netdev;
pub(crate) mod netlink;
pub(crate) mod routing;

/// Warns about each missing rule or route: without it the answers of a back end never reach the agent.
pub(crate) fn warn_if_missing(config: &Config) {
    let desired = routing::desired_items(config);
    if desired.is_empty() {
        return;
    }
    match netlink::installed() {
        Ok(present) => desired.difference(&present).for_each(|item| {
            warn!("source_address = \"client\": `{item}` is missing; `snisplit net apply` adds it");
        }),
        Err(error) => warn!(%error, "source_address = \"client\": cannot read the routing rules"),
    }
    if let Err(error) = routing::check_ip_transparent() {
        warn!(%error, "source_address = \"client\": IP_TRANSPARENT needs CAP_NET_ADMIN");
    }
}

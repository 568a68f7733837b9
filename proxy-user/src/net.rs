//! The way back from back ends that see a client's own address (`source_address = "client"`).
//!
//! Such a back end answers to the client's address. Its packets must come through this host (that is
//! the operator's routing) and then be taken in here rather than forwarded: for each back end one
//! policy rule that looks its packets up in a table of ours, and in that table one route that calls
//! every address local (ip-rule(8), Documentation/networking/tproxy.rst).

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use crate::config::{BackendAddr, Config, SourceAddress};
use crate::sys;

pub(crate) mod host;
mod interfaces;
mod netdev;
mod netlink;

/// The routing table, and the priority of the rules that lead there.
const ROUTE_TABLE: u32 = 1443;

/// One rule or route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RoutingItem {
    /// Looks the packets of a back end up in [`ROUTE_TABLE`].
    Rule(SocketAddr),
    /// Calls every address of a family local, in [`ROUTE_TABLE`].
    Route { is_v6: bool },
}

impl fmt::Display for RoutingItem {
    /// The ip(8) command that adds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |is_v6| if is_v6 { "ip -6" } else { "ip" };
        match self {
            Self::Rule(backend) => write!(
                f,
                "{} rule add priority {ROUTE_TABLE} from {} ipproto tcp sport {} lookup {ROUTE_TABLE}",
                family(backend.is_ipv6()),
                backend.ip(),
                backend.port()
            ),
            Self::Route { is_v6 } => {
                write!(f, "{} route add local default dev lo table {ROUTE_TABLE}", family(*is_v6))
            }
        }
    }
}

/// Prints which rules and routes are there and which are missing; the exit code is 1 if one is missing.
///
/// # Errors
///
/// The rules cannot be read by netlink.
pub fn check(config: &Config) -> Result<ExitCode> {
    let present = netlink::installed().context("cannot read the routing rules")?;
    let desired = desired_items(config);
    if desired.is_empty() {
        println!("no route says source_address = \"client\": nothing is needed");
    }
    for item in &desired {
        let status = if present.contains(item) { "ok" } else { "NO" };
        println!("{status:<4}  {item}");
    }
    for item in present.difference(&desired) {
        println!("warn  not needed by this configuration: {item}");
    }
    let transparent = check_ip_transparent();
    if let (false, Err(error)) = (desired.is_empty(), &transparent) {
        println!("NO    IP_TRANSPARENT: {error}; the agent needs CAP_NET_ADMIN");
    }
    let is_complete = desired.is_empty() || (transparent.is_ok() && desired.is_subset(&present));
    if !is_complete {
        println!("`snisplit net apply` adds what is missing");
    }
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the missing rules and routes and removes those that no back end needs.
///
/// # Errors
///
/// Netlink refuses a change, for lack of CAP_NET_ADMIN for example.
pub fn apply(config: &Config) -> Result<()> {
    let desired = desired_items(config);
    reconcile(&desired)
}

/// Removes all rules and routes.
///
/// # Errors
///
/// Netlink refuses a removal, for lack of CAP_NET_ADMIN for example.
pub fn remove() -> Result<()> {
    reconcile(&BTreeSet::new())
}

fn reconcile(desired: &BTreeSet<RoutingItem>) -> Result<()> {
    let present = netlink::installed().context("cannot read the routing rules")?;
    // A rule that leads to an empty table goes on to the next one, so no order here does harm.
    for item in present.difference(desired) {
        netlink::remove(item).with_context(|| format!("cannot undo `{item}`"))?;
        println!("removed  {item}");
    }
    for item in desired.difference(&present) {
        netlink::add(item).with_context(|| format!("cannot do `{item}`"))?;
        println!("added    {item}");
    }
    Ok(())
}

/// For the agent's start: back ends with a missing way back would never be heard.
pub(crate) fn warn_if_missing(config: &Config) {
    let desired = desired_items(config);
    if desired.is_empty() {
        return;
    }
    match netlink::installed() {
        Ok(present) => desired.difference(&present).for_each(|item| {
            warn!("source_address = \"client\": `{item}` is missing; `snisplit net apply` adds it");
        }),
        Err(error) => warn!(%error, "source_address = \"client\": cannot read the routing rules"),
    }
    if let Err(error) = check_ip_transparent() {
        warn!(%error, "source_address = \"client\": IP_TRANSPARENT needs CAP_NET_ADMIN");
    }
}

fn desired_items(config: &Config) -> BTreeSet<RoutingItem> {
    let transparent =
        config.all_routes().filter(|route| route.source_address == SourceAddress::Client);
    let addresses = transparent.flat_map(|route| &route.backends).filter_map(|backend| {
        match &backend.address {
            BackendAddr::Ip(address) => Some(*address),
            BackendAddr::Host(..) | BackendAddr::Unix(_) => None,
        }
    });
    addresses
        .flat_map(|backend| {
            [RoutingItem::Rule(backend), RoutingItem::Route { is_v6: backend.is_ipv6() }]
        })
        .collect()
}

fn check_ip_transparent() -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    sys::set_transparent(&socket, false)
}

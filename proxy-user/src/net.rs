//! The way back from back ends that see a client's own address (`source = "client"`).
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

use crate::config::{Config, Place, Source};
use crate::sys;

pub(crate) mod host;
mod links;
mod netdev;
mod netlink;

/// The routing table, and the priority of the rules that lead there.
const TABLE: u32 = 1443;

/// One rule or route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    /// Looks the packets of a back end up in [`TABLE`].
    Rule(SocketAddr),
    /// Calls every address of a family local, in [`TABLE`].
    Route { is_v6: bool },
}

impl fmt::Display for Piece {
    /// The ip(8) command that adds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |is_v6| if is_v6 { "ip -6" } else { "ip" };
        match self {
            Self::Rule(backend) => write!(
                f,
                "{} rule add priority {TABLE} from {} ipproto tcp sport {} lookup {TABLE}",
                family(backend.is_ipv6()),
                backend.ip(),
                backend.port()
            ),
            Self::Route { is_v6 } => {
                write!(f, "{} route add local default dev lo table {TABLE}", family(*is_v6))
            }
        }
    }
}

/// Says what is there and what is missing; fails if something is.
pub fn check(config: &Config) -> Result<ExitCode> {
    let present = netlink::present().context("cannot read the routing rules")?;
    let wanted = wanted(config);
    if wanted.is_empty() {
        println!("no route says source = \"client\": nothing is needed");
    }
    for piece in &wanted {
        let mark = if present.contains(piece) { "ok" } else { "NO" };
        println!("{mark:<4}  {piece}");
    }
    for piece in present.difference(&wanted) {
        println!("warn  not needed by this configuration: {piece}");
    }
    let may = may_be_transparent();
    if let (false, Err(error)) = (wanted.is_empty(), &may) {
        println!("NO    IP_TRANSPARENT: {error}; the agent needs CAP_NET_ADMIN");
    }
    let all_well = wanted.is_empty() || (may.is_ok() && wanted.is_subset(&present));
    if !all_well {
        println!("`snisplit net apply` adds what is missing");
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds what is missing and removes what a former configuration needed.
pub fn apply(config: &Config) -> Result<()> {
    let wanted = wanted(config);
    change(&wanted)
}

/// Removes all of it.
pub fn remove() -> Result<()> {
    change(&BTreeSet::new())
}

fn change(wanted: &BTreeSet<Piece>) -> Result<()> {
    let present = netlink::present().context("cannot read the routing rules")?;
    // A rule that leads to an empty table goes on to the next one, so no order here does harm.
    for piece in present.difference(wanted) {
        netlink::remove(piece).with_context(|| format!("cannot undo `{piece}`"))?;
        println!("removed  {piece}");
    }
    for piece in wanted.difference(&present) {
        netlink::add(piece).with_context(|| format!("cannot do `{piece}`"))?;
        println!("added    {piece}");
    }
    Ok(())
}

/// For the agent's start: back ends with a missing way back would never be heard.
pub(crate) fn warn_of_missing(config: &Config) {
    let wanted = wanted(config);
    if wanted.is_empty() {
        return;
    }
    match netlink::present() {
        Ok(present) => wanted.difference(&present).for_each(|piece| {
            warn!("source = \"client\": `{piece}` is missing; `snisplit net apply` adds it");
        }),
        Err(error) => warn!(%error, "source = \"client\": cannot read the routing rules"),
    }
    if let Err(error) = may_be_transparent() {
        warn!(%error, "source = \"client\": IP_TRANSPARENT needs CAP_NET_ADMIN");
    }
}

fn wanted(config: &Config) -> BTreeSet<Piece> {
    let transparent = config.all_routes().filter(|route| route.source == Source::Client);
    let addresses =
        transparent.flat_map(|route| &route.backends).filter_map(|backend| match &backend.place {
            Place::Address(address) => Some(*address),
            Place::Name(..) | Place::Unix(_) => None,
        });
    addresses
        .flat_map(|backend| [Piece::Rule(backend), Piece::Route { is_v6: backend.is_ipv6() }])
        .collect()
}

fn may_be_transparent() -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    sys::set_transparent(&socket, false)
}

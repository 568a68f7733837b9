//! The policy routing that back ends need which see a client's own address
//! (`source_address = "client"`).
//!
//! Such a back end answers to the client's address. The operator's routing must bring these packets to
//! this host, and this host must take them in rather than forward them. For each such back end one
//! policy rule looks its packets up in [`ROUTE_TABLE`], and in that table one route declares every
//! address local (ip-rule(8), Documentation/networking/tproxy.rst).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{BackendAddr, Config, SourceAddress};
use crate::sys;

/// Number of the routing table, and priority of the rules that lead to it.
pub(super) const ROUTE_TABLE: u32 = 1443;

/// One rule or route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RoutingItem {
    /// Policy rule that looks up the packets of a back end in [`ROUTE_TABLE`].
    Rule(SocketAddr),
    /// Route in [`ROUTE_TABLE`] that declares every address of a family local.
    Route { is_v6: bool },
}

impl fmt::Display for RoutingItem {
    /// Writes the ip(8) command that adds the item.
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

/// Rules and routes that the routes of a configuration need.
pub(crate) fn desired_items(config: &Config) -> BTreeSet<RoutingItem> {
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

/// Tests whether this process may set IP_TRANSPARENT.
///
/// # Errors
///
/// The error of socket(2) or setsockopt(2); `EPERM` without CAP_NET_ADMIN.
pub(crate) fn check_ip_transparent() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    sys::set_transparent(&socket, false)
}

//! Policy rules and routes by rtnetlink(7), and the number of nftables' tables.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::routing::{ROUTE_TABLE, RoutingItem};

/// The loopback device of every network namespace (LOOPBACK_IFINDEX, net/net_namespace.h).
const LOOPBACK_IFINDEX: u32 = 1;

/// Lists the rules and routes of [`ROUTE_TABLE`].
///
/// # Errors
///
/// The error of a netlink request.
pub(crate) fn installed() -> io::Result<BTreeSet<RoutingItem>> {
    let mut items = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut rules = RuleMessage::default();
        rules.header.family = family;
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        for request in [RouteNetlinkMessage::GetRule(rules), RouteNetlinkMessage::GetRoute(routes)]
        {
            items.extend(send_request(request, NLM_F_DUMP)?.iter().filter_map(parse_item));
        }
    }
    Ok(items)
}

/// Adds a rule or route.
///
/// # Errors
///
/// The error of the netlink request, such as `EPERM` without CAP_NET_ADMIN.
pub(crate) fn add(item: &RoutingItem) -> io::Result<()> {
    let request = match item {
        RoutingItem::Rule(backend) => RouteNetlinkMessage::NewRule(rule(*backend)),
        RoutingItem::Route { is_v6 } => RouteNetlinkMessage::NewRoute(route(*is_v6)),
    };
    send_request(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Removes a rule or route.
///
/// # Errors
///
/// The error of the netlink request, such as `EPERM` without CAP_NET_ADMIN.
pub(crate) fn remove(item: &RoutingItem) -> io::Result<()> {
    let request = match item {
        RoutingItem::Rule(backend) => RouteNetlinkMessage::DelRule(rule(*backend)),
        RoutingItem::Route { is_v6 } => RouteNetlinkMessage::DelRoute(route(*is_v6)),
    };
    send_request(request, NLM_F_ACK).map(drop)
}

const fn family(is_v6: bool) -> AddressFamily {
    if is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn rule(backend: SocketAddr) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(backend.is_ipv6());
    message.header.src_len = if backend.is_ipv6() { 128 } else { 32 };
    message.header.action = RuleAction::ToTable;
    let port = backend.port();
    message.attributes = vec![
        RuleAttribute::Priority(ROUTE_TABLE),
        RuleAttribute::Source(backend.ip()),
        RuleAttribute::IpProtocol(IpProtocol::Tcp),
        RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
        RuleAttribute::Table(ROUTE_TABLE),
    ];
    message
}

fn route(is_v6: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(is_v6);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes =
        vec![RouteAttribute::Table(ROUTE_TABLE), RouteAttribute::Oif(LOOPBACK_IFINDEX)];
    message
}

/// Parses a rule or route of [`ROUTE_TABLE`]; `None` if it is another one.
fn parse_item(message: &RouteNetlinkMessage) -> Option<RoutingItem> {
    if let RouteNetlinkMessage::NewRoute(route) = message {
        let in_table = route.attributes.contains(&RouteAttribute::Table(ROUTE_TABLE));
        let is_v6 = route.header.address_family == AddressFamily::Inet6;
        return in_table.then_some(RoutingItem::Route { is_v6 });
    }
    let RouteNetlinkMessage::NewRule(RuleMessage { attributes, .. }) = message else {
        return None;
    };
    let (mut ip, mut port) = (None, None);
    for attribute in attributes {
        if let RuleAttribute::Source(address) = attribute {
            ip = Some(*address);
        } else if let RuleAttribute::SourcePortRange(range) = attribute {
            port = Some(range.start);
        }
    }
    let in_table = attributes.contains(&RuleAttribute::Table(ROUTE_TABLE));
    in_table.then_some(RoutingItem::Rule((ip?, port?).into()))
}

/// Sends a request, and returns the messages of the response.
///
/// # Errors
///
/// The error of a socket call, or the one that the kernel responds with.
pub(super) fn send_request(
    request: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
            let answer = answer.map_err(io::Error::other)?;
            let length = answer.header.length.next_multiple_of(4) as usize;
            rest = rest.get(length..).unwrap_or_default();
            if let NetlinkPayload::InnerMessage(inner) = answer.payload {
                answers.push(inner);
                continue;
            }
            // The end of a dump, or an acknowledgement: an error message without a code.
            if let NetlinkPayload::Error(error) = &answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
            return Ok(answers);
        }
    }
}

/// Counts the tables of nftables, including those of iptables-nft.
///
/// # Errors
///
/// The error of a socket call, such as `EPROTONOSUPPORT` without nftables.
pub(super) fn count_nf_tables() -> io::Result<usize> {
    /// linux/netfilter/nfnetlink.h and nf_tables.h: `NFNL_SUBSYS_NFTABLES << 8`, of which 0 is
    /// `NFT_MSG_NEWTABLE` and 1 `NFT_MSG_GETTABLE`.
    const NFT_MSG_NEWTABLE: u16 = 10 << 8;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    // `nlmsghdr` and `nfgenmsg`: all families.
    let mut request = [0; 20];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&(NFT_MSG_NEWTABLE + 1).to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    socket.send(&request, 0)?;
    let mut tables = 0;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some((header, _)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, kind @ .., _, _] = *header;
            match u16::from_ne_bytes(kind) {
                NFT_MSG_NEWTABLE => tables += 1,
                _ => return Ok(tables),
            }
            let length = u32::from_ne_bytes([a, b, c, d]).next_multiple_of(4) as usize;
            rest = rest.get(length.max(8)..).unwrap_or_default();
        }
    }
}

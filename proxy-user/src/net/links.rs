//! The interfaces that clients and back ends can be behind.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};

use super::netlink::ask;

/// An Ethernet interface with an address.
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) number: u32,
    /// Whether it is one end of a veth pair, and the other end in another network namespace.
    pub(crate) has_peer: bool,
    /// Whether it is a veth pair's, wherever the other end is.
    pub(crate) is_veth: bool,
}

/// All Ethernet interfaces with an address: what is part of a bridge or bond has none, and is seen
/// through that.
pub(super) fn with_addresses() -> io::Result<Vec<Interface>> {
    let addresses = ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
    let mut addressed = BTreeSet::new();
    for answer in addresses {
        if let RouteNetlinkMessage::NewAddress(address) = answer {
            addressed.insert(address.header.index);
        }
    }
    let mut found = Vec::new();
    for answer in ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)? {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            found.extend(ethernet(&link).filter(|link| addressed.contains(&link.number)));
        }
    }
    Ok(found)
}

/// `None`: it is no Ethernet interface.
fn ethernet(message: &LinkMessage) -> Option<Interface> {
    let (mut name, mut is_veth, mut is_elsewhere) = (None, false, false);
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(given) = attribute {
            name = Some(given.clone());
        }
        if let LinkAttribute::LinkInfo(infos) = attribute {
            is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
        }
        // Said only if the other end is in another namespace (rtnl_fill_link_netnsid).
        is_elsewhere |= matches!(attribute, LinkAttribute::LinkNetNsId(_));
    }
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let has_peer = is_veth && is_elsewhere;
    let (name, number) = (name.filter(|_| is_ethernet)?, message.header.index);
    Some(Interface { name, number, has_peer, is_veth })
}

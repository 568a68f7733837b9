//! The interfaces that clients and back ends can be behind.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};

use super::netlink::ask;

/// Names and numbers of all Ethernet interfaces with an address: what is part of a bridge or bond has
/// none, and is seen through that.
pub(super) fn with_addresses() -> io::Result<Vec<(String, u32)>> {
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
            found.extend(named(&link).filter(|(_, number)| addressed.contains(number)));
        }
    }
    Ok(found)
}

/// An Ethernet interface.
fn named(link: &LinkMessage) -> Option<(String, u32)> {
    let mut name = None;
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(given) = attribute {
            name = Some(given.clone());
        }
    }
    let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    Some((name.filter(|_| is_ethernet)?, link.header.index))
}

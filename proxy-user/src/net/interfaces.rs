//! The Ethernet interfaces of the host.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};

use super::netlink::send_request;

/// An Ethernet interface with an address.
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    /// Whether it is a veth whose peer is in another network namespace.
    pub(crate) peer_in_other_netns: bool,
    /// Whether it is a veth.
    pub(crate) is_veth: bool,
}

/// Lists all Ethernet interfaces with an address. Ports of a bridge or bond have none; the list has the
/// bridge or bond instead.
///
/// # Errors
///
/// The error of a netlink request.
pub(super) fn list_with_addresses() -> io::Result<Vec<Interface>> {
    let addresses =
        send_request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
    let mut with_address = BTreeSet::new();
    for answer in addresses {
        if let RouteNetlinkMessage::NewAddress(address) = answer {
            with_address.insert(address.header.index);
        }
    }
    let mut interfaces = Vec::new();
    for answer in send_request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)? {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            interfaces.extend(
                ethernet_interface(&link).filter(|link| with_address.contains(&link.ifindex)),
            );
        }
    }
    Ok(interfaces)
}

/// Parses a link; `None` if it is no Ethernet interface.
fn ethernet_interface(message: &LinkMessage) -> Option<Interface> {
    let (mut name, mut is_veth, mut has_link_netns) = (None, false, false);
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(if_name) = attribute {
            name = Some(if_name.clone());
        }
        if let LinkAttribute::LinkInfo(infos) = attribute {
            is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
        }
        // Present only if the peer is in another namespace (rtnl_fill_link_netnsid).
        has_link_netns |= matches!(attribute, LinkAttribute::LinkNetNsId(_));
    }
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let peer_in_other_netns = is_veth && has_link_netns;
    let (name, ifindex) = (name.filter(|_| is_ethernet)?, message.header.index);
    Some(Interface { name, ifindex, peer_in_other_netns, is_veth })
}

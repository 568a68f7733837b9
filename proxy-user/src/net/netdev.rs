//! What the drivers of interfaces can do, by the generic netlink family `netdev` (since Linux 6.3;
//! Documentation/netlink/specs/netdev.yaml).

use std::io;

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr as Kernel};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and attributes of that (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `NETDEV_CMD_DEV_GET`, and attributes of that (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// `NETDEV_XDP_ACT_BASIC` and `_REDIRECT`: it has native XDP, and a program can send frames elsewhere.
pub(super) const XDP_BASIC_REDIRECT: u64 = 1 | 2;
/// `NETDEV_XDP_ACT_NDO_XMIT`: it takes frames of others. Many drivers do only while a program is in them.
pub(super) const NDO_XMIT: u64 = 4;

/// `nlmsghdr`, `genlmsghdr` and the latter's version.
const NLMSG_HEADER_LEN: usize = 16;
const GENL_HEADER_LEN: usize = 4;
const GENL_VERSION: u8 = 1;

/// Whether an interface has these features now. An older kernel does not say.
pub(super) fn has_features(ifindex: u32, required: u64) -> io::Result<bool> {
    let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, b"netdev\0".to_vec());
    let family = request_attribute((GENL_ID_CTRL, CTRL_CMD_GETFAMILY), &name, CTRL_ATTR_FAMILY_ID)?;
    let family =
        family.first_chunk().copied().map(u16::from_ne_bytes).ok_or_else(malformed_reply)?;
    let interface = DefaultNla::new(NETDEV_A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec());
    let features =
        request_attribute((family, NETDEV_CMD_DEV_GET), &interface, NETDEV_A_DEV_XDP_FEATURES)?;
    let features =
        features.first_chunk().copied().map(u64::from_ne_bytes).ok_or_else(malformed_reply)?;
    Ok(features & required == required)
}

fn malformed_reply() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer without what was asked for")
}

/// One attribute of the answer to a question that has one.
fn request_attribute(
    (family, command): (u16, u8),
    attribute: &DefaultNla,
    reply_kind: u16,
) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&Kernel::new(0, 0))?;
    let length = NLMSG_HEADER_LEN + GENL_HEADER_LEN + attribute.buffer_len();
    let mut request = vec![0; length];
    request[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&family.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[NLMSG_HEADER_LEN..NLMSG_HEADER_LEN + 2].copy_from_slice(&[command, GENL_VERSION]);
    attribute.emit(&mut request[NLMSG_HEADER_LEN + GENL_HEADER_LEN..]);
    socket.send(&request, 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    // Another kind is NLMSG_ERROR, with a code below 0.
    let kind = datagram.get(4..6).ok_or_else(malformed_reply)?;
    if kind != family.to_ne_bytes() {
        let code = datagram
            .get(NLMSG_HEADER_LEN..)
            .and_then(|code| code.first_chunk())
            .ok_or_else(malformed_reply)?;
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)));
    }
    let attributes =
        datagram.get(NLMSG_HEADER_LEN + GENL_HEADER_LEN..).ok_or_else(malformed_reply)?;
    for reply in NlasIterator::new(attributes).flatten() {
        if reply.kind() == reply_kind {
            return Ok(reply.value().to_vec());
        }
    }
    Err(malformed_reply())
}

//! XDP features of interface drivers, by the generic netlink family `netdev` (since Linux 6.3;
//! Documentation/netlink/specs/netdev.yaml).

use std::io;

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and its attributes (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `NETDEV_CMD_DEV_GET`, and its attributes (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// `NETDEV_XDP_ACT_BASIC` and `_REDIRECT`: the driver runs XDP programs, and they can redirect frames.
pub(super) const XDP_BASIC_REDIRECT: u64 = 1 | 2;
/// `NETDEV_XDP_ACT_NDO_XMIT`: the driver transmits frames that other drivers redirect. Many drivers do so
/// only while they have an XDP program themselves.
pub(super) const NDO_XMIT: u64 = 4;

/// Bytes of `nlmsghdr`.
const NLMSG_HEADER_LEN: usize = 16;
/// Bytes of `genlmsghdr`, and the version in it.
const GENL_HEADER_LEN: usize = 4;
const GENL_VERSION: u8 = 1;

/// Returns whether the driver of an interface has all `required` features at present.
///
/// # Errors
///
/// The error of a socket call, or the one that the kernel responds with: `ENOENT` before Linux 6.3.
pub(super) fn has_features(ifindex: u32, required: u64) -> io::Result<bool> {
    let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, b"netdev\0".to_vec());
    let family = request_attribute(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name, CTRL_ATTR_FAMILY_ID)?;
    let family =
        family.first_chunk().copied().map(u16::from_ne_bytes).ok_or_else(malformed_reply)?;
    let interface = DefaultNla::new(NETDEV_A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec());
    let features =
        request_attribute(family, NETDEV_CMD_DEV_GET, &interface, NETDEV_A_DEV_XDP_FEATURES)?;
    let features =
        features.first_chunk().copied().map(u64::from_ne_bytes).ok_or_else(malformed_reply)?;
    Ok(features & required == required)
}

fn malformed_reply() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed response of the kernel")
}

/// Sends a command with one attribute. Returns the attribute of kind `reply_kind` in the response.
fn request_attribute(
    family: u16,
    command: u8,
    attribute: &DefaultNla,
    reply_kind: u16,
) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let length = NLMSG_HEADER_LEN + GENL_HEADER_LEN + attribute.buffer_len();
    let mut request = vec![0; length];
    request[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&family.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[NLMSG_HEADER_LEN..NLMSG_HEADER_LEN + 2].copy_from_slice(&[command, GENL_VERSION]);
    attribute.emit(&mut request[NLMSG_HEADER_LEN + GENL_HEADER_LEN..]);
    socket.send(&request, 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    // A message of another type is NLMSG_ERROR, with a negative code.
    let message_type = datagram.get(4..6).ok_or_else(malformed_reply)?;
    if message_type != family.to_ne_bytes() {
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

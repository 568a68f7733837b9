//! What the drivers of interfaces can do, by the generic netlink family `netdev` (since Linux 6.3;
//! Documentation/netlink/specs/netdev.yaml).

use std::io;

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr as Kernel};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and attributes of that (linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `NETDEV_CMD_DEV_GET`, and attributes of that (linux/netdev.h).
const GET_DEVICE: u8 = 1;
const INTERFACE: u16 = 1;
const XDP_FEATURES: u16 = 3;

/// `NETDEV_XDP_ACT_BASIC` and `_REDIRECT`: it has native XDP, and a program can send frames elsewhere.
pub(super) const GIVES: u64 = 1 | 2;
/// `NETDEV_XDP_ACT_NDO_XMIT`: it takes frames of others. Many drivers do only while a program is in them.
pub(super) const TAKES: u64 = 4;

/// `nlmsghdr`, `genlmsghdr` and the latter's version.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const VERSION: u8 = 1;

/// Whether an interface has these features now. An older kernel does not say.
pub(super) fn can(number: u32, wanted: u64) -> io::Result<bool> {
    let name = DefaultNla::new(FAMILY_NAME, b"netdev\0".to_vec());
    let family = ask((CONTROL, GET_FAMILY), &name, FAMILY_ID)?;
    let family = family.first_chunk().copied().map(u16::from_ne_bytes).ok_or_else(nothing)?;
    let interface = DefaultNla::new(INTERFACE, number.to_ne_bytes().to_vec());
    let features = ask((family, GET_DEVICE), &interface, XDP_FEATURES)?;
    let features = features.first_chunk().copied().map(u64::from_ne_bytes).ok_or_else(nothing)?;
    Ok(features & wanted == wanted)
}

fn nothing() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer without what was asked for")
}

/// One attribute of the answer to a question that has one.
fn ask((family, command): (u16, u8), about: &DefaultNla, want: u16) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&Kernel::new(0, 0))?;
    let length = HEADER + GENERIC + about.buffer_len();
    let mut request = vec![0; length];
    request[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&family.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[HEADER..HEADER + 2].copy_from_slice(&[command, VERSION]);
    about.emit(&mut request[HEADER + GENERIC..]);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // Another kind is NLMSG_ERROR, with a code below 0.
    let kind = answer.get(4..6).ok_or_else(nothing)?;
    if kind != family.to_ne_bytes() {
        let code = answer.get(HEADER..).and_then(|code| code.first_chunk()).ok_or_else(nothing)?;
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)));
    }
    let attributes = answer.get(HEADER + GENERIC..).ok_or_else(nothing)?;
    for attribute in NlasIterator::new(attributes).flatten() {
        if attribute.kind() == want {
            return Ok(attribute.value().to_vec());
        }
    }
    Err(nothing())
}

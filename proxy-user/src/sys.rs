//! The system calls that no safe wrapper offers. The only module with `unsafe` in this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{SO_RCVLOWAT, SOL_SOCKET, c_int, socklen_t};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// linux/sockios.h gives the terminal's code another name.
const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;

/// Has tokio watch a descriptor of its owner's.
pub(crate) fn async_fd<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor must stay the same open one until it is deregistered. `AsFd` promises
    // that of an owner while it lives (std::os::fd, I/O safety), and `AsyncFd` holds the owner and
    // deregisters before it lets go of it.
    unsafe { AsyncFd::register_with_interest(owner, interest) }.map_err(io::Error::from)
}

/// Bytes that were written to a socket and that its peer has not acknowledged, tcp(7); of a unix
/// socket, bytes that its peer has not read.
pub(crate) fn unacked_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut queued: c_int = 0;
    // SAFETY: SIOCOUTQ stores one C int through its argument (tcp_ioctl, net/ipv4/tcp.c;
    // unix_ioctl, net/unix/af_unix.c), and `queued` is one that outlives the call.
    let failed = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCOUTQ, &raw mut queued) };
    match failed {
        0 => Ok(usize::try_from(queued).unwrap_or_default()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives memory that this thread has freed back to the kernel (`mi_collect`, mimalloc.h).
pub(crate) fn trim_heap() {
    // SAFETY: takes a flag and touches nothing of ours.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// What TCP says of a connection, as far as it is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// `TCP_ESTABLISHED` and so on, include/net/tcp_states.h.
    pub(crate) state: u8,
    /// What both sides agreed on (`TCPI_OPT_TIMESTAMPS` and so on, include/uapi/linux/tcp.h).
    pub(crate) options: u8,
    /// The window scale of what the peer says.
    pub(crate) snd_wscale: u8,
    /// The window scale of what we say.
    pub(crate) rcv_wscale: u8,
    /// Bytes that a segment to the peer may have, options with its data.
    pub(crate) snd_mss: u32,
    /// Bytes that a segment from the peer may have, as we told it.
    pub(crate) advmss: u32,
    /// Whether the peer has acknowledged all that was written.
    pub(crate) is_send_queue_empty: bool,
    /// Bytes that the peer has acknowledged, and one for a SYN or FIN of ours.
    pub(crate) bytes_acked: u64,
    /// Bytes that arrived in order, and one for a FIN.
    pub(crate) bytes_received: u64,
}

/// `TCP_INFO`, tcp(7); the layout is `struct tcp_info` in include/uapi/linux/tcp.h.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = [0_u8; 148];
    let mut len = raw.len() as socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let buffer = raw.as_mut_ptr().cast();
    // SAFETY: getsockopt writes at most `len` bytes, which is the size of `raw`.
    let failed =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, buffer, &raw mut len) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < raw.len() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let u64_at = |at: usize| {
        let bytes = raw[at..].first_chunk();
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    let u32_at = |at: usize| {
        let bytes = raw[at..].first_chunk();
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    // Two bit-fields, of which a little-endian machine has the first below.
    let (first, second) = (raw[6] & 0xf, raw[6] >> 4);
    let is_little = cfg!(target_endian = "little");
    let (snd_wscale, rcv_wscale) = if is_little { (first, second) } else { (second, first) };
    Ok(TcpInfo {
        state: raw[0],
        options: raw[5],
        snd_wscale,
        rcv_wscale,
        snd_mss: u32_at(16),
        advmss: u32_at(84),
        // Segments on their way, and bytes that wait to be sent.
        is_send_queue_empty: u32_at(24) == 0 && u32_at(144) == 0,
        bytes_acked: u64_at(120),
        bytes_received: u64_at(128),
    })
}

/// Sets how many unread bytes make a socket readable, socket(7). The kernel also widens the
/// receive buffer to hold that many (tcp_set_rcvlowat, net/ipv4/tcp.c).
pub(crate) fn set_rcvlowat(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    set_int(socket, SOL_SOCKET, SO_RCVLOWAT, c_int::try_from(bytes).unwrap_or(c_int::MAX))
}

/// Says which buffers of a socket keep the size that was set (`SO_BUF_LOCK`, Linux 5.16); 0 is none.
pub(crate) fn set_buf_lock(socket: impl AsFd, flags: c_int) -> io::Result<()> {
    set_int(socket, SOL_SOCKET, libc::SO_BUF_LOCK, flags)
}

/// Closes a connection without a word to its peer, tcp(7) and Documentation/networking: one in repair
/// mode is only forgotten (`__tcp_close`, net/ipv4/tcp.c). Needs CAP_NET_ADMIN.
pub(crate) fn enable_repair(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)
}

/// Lets a socket come from an address that is not this host's, ip(7); needs CAP_NET_ADMIN.
pub(crate) fn set_transparent(socket: impl AsFd, is_v6: bool) -> io::Result<()> {
    match is_v6 {
        true => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
        false => set_int(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
    }
}

/// bind(2) to port 0 leaves the port to connect(2), ip(7); it works on IPv6 sockets too
/// (inet6_bind, net/ipv6/af_inet6.c).
pub(crate) fn set_bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_int(socket: impl AsFd, level: c_int, option: c_int, number: c_int) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let value: *const c_int = &raw const number;
    let len = size_of::<c_int>() as socklen_t;
    // SAFETY: setsockopt reads one C int of `len` bytes from `value`, which points at `number`; each
    // option that is passed here takes one.
    match unsafe { libc::setsockopt(fd, level, option, value.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

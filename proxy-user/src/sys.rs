//! The system calls that no safe wrapper offers. The only module with `unsafe` in this crate.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, offset_of};
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
    // SAFETY: the structure consists of integers, for which zero bytes are a valid value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of_val(&info) as socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let buffer = (&raw mut info).cast();
    // SAFETY: getsockopt writes at most `len` bytes, which is the size of `info`.
    let failed =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, buffer, &raw mut len) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // Kernels before 4.6 know a shorter structure. This is the last field that is read below.
    let needed = offset_of!(libc::tcp_info, tcpi_notsent_bytes) + size_of::<u32>();
    if (len as usize) < needed {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // The byte has two bit-fields of 4 bits. On a little-endian machine the first has the lower bits.
    let (low, high) = (info.tcpi_snd_rcv_wscale & 0xf, info.tcpi_snd_rcv_wscale >> 4);
    let is_little_endian = cfg!(target_endian = "little");
    let (snd_wscale, rcv_wscale) = if is_little_endian { (low, high) } else { (high, low) };
    Ok(TcpInfo {
        state: info.tcpi_state,
        options: info.tcpi_options,
        snd_wscale,
        rcv_wscale,
        snd_mss: info.tcpi_snd_mss,
        advmss: info.tcpi_advmss,
        is_send_queue_empty: info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0,
        bytes_acked: info.tcpi_bytes_acked,
        bytes_received: info.tcpi_bytes_received,
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

//! System calls that have no safe wrapper. This is the only module of the crate with unsafe code.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, offset_of};
use std::os::fd::{AsFd, AsRawFd};

use libc::{SO_RCVLOWAT, SOL_SOCKET, c_int, socklen_t};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// linux/sockios.h defines it as `TIOCOUTQ`; libc has the latter name only.
const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;

/// Registers the descriptor of `owner` with tokio.
///
/// # Errors
///
/// The error of epoll_ctl(2).
pub(crate) fn async_fd<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor must stay open, and the same, until it is deregistered. `AsFd` guarantees
    // that as long as the owner lives (std::os::fd, I/O safety). `AsyncFd` owns `owner`, and
    // deregisters the descriptor before it drops it.
    unsafe { AsyncFd::register_with_interest(owner, interest) }.map_err(io::Error::from)
}

/// Returns how many bytes were written to a TCP socket and not acknowledged by the peer (tcp(7)). For a
/// unix socket, these are the bytes that its peer has not read.
///
/// # Errors
///
/// The error of ioctl(2).
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

/// Returns memory that this thread has freed to the kernel (`mi_collect`, mimalloc.h).
pub(crate) fn trim_heap() {
    // SAFETY: mi_collect takes a flag, and frees only memory that is not in use.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// The fields of `struct tcp_info` that the engines use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// State such as `TCP_ESTABLISHED` (include/net/tcp_states.h).
    pub(crate) state: u8,
    /// Negotiated options such as `TCPI_OPT_TIMESTAMPS` (include/uapi/linux/tcp.h).
    pub(crate) options: u8,
    /// Window scale of the windows that the peer advertises.
    pub(crate) snd_wscale: u8,
    /// Window scale of the windows that this socket advertises.
    pub(crate) rcv_wscale: u8,
    /// Most data in a segment to the peer, in bytes, without TCP options.
    pub(crate) snd_mss: u32,
    /// MSS that was advertised to the peer, in bytes.
    pub(crate) advmss: u32,
    /// Whether the peer has acknowledged all bytes that were written.
    pub(crate) is_send_queue_empty: bool,
    /// Bytes that the peer has acknowledged. A SYN or FIN counts as one byte.
    pub(crate) bytes_acked: u64,
    /// Bytes that have arrived in order. A FIN counts as one byte.
    pub(crate) bytes_received: u64,
}

/// Reads the state of a TCP socket (`TCP_INFO`, tcp(7)).
///
/// # Errors
///
/// The error of getsockopt(2), or `Unsupported` before Linux 4.6.
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

/// Sets how many unread bytes make a socket readable (`SO_RCVLOWAT`, socket(7)). The kernel also
/// enlarges the receive buffer to hold that many (tcp_set_rcvlowat, net/ipv4/tcp.c).
///
/// # Errors
///
/// The error of setsockopt(2).
pub(crate) fn set_rcvlowat(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    set_int(socket, SOL_SOCKET, SO_RCVLOWAT, c_int::try_from(bytes).unwrap_or(c_int::MAX))
}

/// Sets which buffers of a socket keep their size (`SO_BUF_LOCK`, Linux 5.16); 0 unlocks both.
///
/// # Errors
///
/// The error of setsockopt(2).
pub(crate) fn set_buf_lock(socket: impl AsFd, flags: c_int) -> io::Result<()> {
    set_int(socket, SOL_SOCKET, libc::SO_BUF_LOCK, flags)
}

/// Puts a socket into repair mode (`TCP_REPAIR`). Closing such a socket sends no packet to the peer
/// (`__tcp_close`, net/ipv4/tcp.c).
///
/// # Errors
///
/// The error of setsockopt(2): `EPERM` without CAP_NET_ADMIN.
pub(crate) fn enable_repair(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)
}

/// Lets a socket bind to an address of another host (`IP_TRANSPARENT`, ip(7)).
///
/// # Errors
///
/// The error of setsockopt(2): `EPERM` without CAP_NET_ADMIN.
pub(crate) fn set_transparent(socket: impl AsFd, is_v6: bool) -> io::Result<()> {
    match is_v6 {
        true => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
        false => set_int(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
    }
}

/// Makes bind(2) to port 0 leave the choice of the port to connect(2) (`IP_BIND_ADDRESS_NO_PORT`,
/// ip(7)). It applies to IPv6 sockets too (inet6_bind, net/ipv6/af_inet6.c).
///
/// # Errors
///
/// The error of setsockopt(2).
pub(crate) fn set_bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_int(socket: impl AsFd, level: c_int, option: c_int, number: c_int) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let value: *const c_int = &raw const number;
    let len = size_of::<c_int>() as socklen_t;
    // SAFETY: setsockopt reads `len` bytes from `value`, which points to `number`, a C int of that
    // length. All options that are passed to this function take a C int.
    match unsafe { libc::setsockopt(fd, level, option, value.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

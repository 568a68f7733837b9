//! The system calls that no safe wrapper offers. The only module with `unsafe` in this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{SO_RCVLOWAT, SOL_SOCKET, c_int, socklen_t};

/// linux/sockios.h gives the terminal's code another name.
const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;

/// Bytes that were written to a TCP socket and that its peer has not acknowledged, tcp(7).
pub(crate) fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut queued: c_int = 0;
    // SAFETY: SIOCOUTQ stores one C int through its argument (tcp_ioctl, net/ipv4/tcp.c), and
    // `queued` is one that outlives the call.
    let failed = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCOUTQ, &raw mut queued) };
    match failed {
        0 => Ok(usize::try_from(queued).unwrap_or_default()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets how many unread bytes make a socket readable, socket(7). The kernel also widens the
/// receive buffer to hold that many (tcp_set_rcvlowat, net/ipv4/tcp.c).
pub(crate) fn set_receive_low_water(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    let fd = socket.as_fd().as_raw_fd();
    let value: *const c_int = &raw const bytes;
    let len = size_of::<c_int>() as socklen_t;
    // SAFETY: SO_RCVLOWAT reads one C int of `len` bytes from `value`, which points at `bytes`.
    match unsafe { libc::setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, value.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

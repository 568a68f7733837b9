//! Receive buffer of a socket in the map: its size, and when the kernel reports its bytes.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::sys;

/// Bytes of the receive buffer. The TCP window is at least half of it.
///
/// While the kernel forwards, the buffer would grow to the maximum of `tcp_rmem` (32 MiB on recent
/// kernels). A sender could fill all of it once the other peer stops reading.
const MAX_RCVBUF: usize = 3 << 20;

/// Bytes that a socket holds back while it enters or leaves the map.
///
/// The kernel allows at most half of the receive buffer (`tcp_set_rcvlowat`). 256 KiB are too few:
/// bulk fills them in 0.1 ms.
const LOW_WATER_MARK: usize = MAX_RCVBUF / 2;

/// Holds arriving bytes back in the socket: TCP reports fewer than [`LOW_WATER_MARK`] to nobody
/// (`tcp_data_ready`).
///
/// The kernel drops a buffer that meets a program which is just being detached, although TCP has
/// acknowledged it (`sk_psock_verdict_recv`, net/core/skmsg.c).
pub(super) fn raise_rcvlowat(socket: impl AsFd) -> io::Result<()> {
    sys::set_rcvlowat(socket, LOW_WATER_MARK)
}

/// Limits the receive buffer to [`MAX_RCVBUF`].
pub(super) fn cap_rcvbuf(socket: impl AsFd) -> io::Result<()> {
    // The kernel doubles the value, for its own overhead (socket(7)).
    Ok(set_socket_recv_buffer_size_force(socket, MAX_RCVBUF / 2)?)
}

/// Lets TCP choose the size of the receive buffer again.
pub(super) fn uncap_rcvbuf(socket: impl AsFd) {
    let _before_linux_5_16 = sys::set_buf_lock(socket, 0);
}

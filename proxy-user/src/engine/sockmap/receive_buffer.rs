//! How much a socket of the map may hold.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::sys;

/// Bytes of memory that a receiver may hold, of which the window is half at least. It would grow to
/// `tcp_rmem`'s maximum (32 MiB by now) while the kernel forwards, and a sender could fill all of it
/// once the other peer stops reading.
const MAX_RCVBUF: usize = 3 << 20;

/// More than arrives while a socket enters or leaves the map. The kernel allows no more than half of the
/// receive buffer (tcp_set_rcvlowat): 256 KiB, which bulk fills in 0.1 ms, were too few.
const LOW_WATER_MARK: usize = MAX_RCVBUF / 2;

/// Has what arrives wait in the socket, for an instant: TCP tells nobody of fewer bytes than these
/// (tcp_data_ready). A buffer that meets a program which is just being taken away is dropped, although
/// TCP has acknowledged it (sk_psock_verdict_recv, net/core/skmsg.c).
pub(super) fn raise_rcvlowat(socket: impl AsFd) -> io::Result<()> {
    sys::set_rcvlowat(socket, LOW_WATER_MARK)
}

/// Bounds what a receiver may hold.
pub(super) fn cap_rcvbuf(socket: impl AsFd) -> io::Result<()> {
    // The kernel takes it twice, for its own overhead (socket(7)).
    Ok(set_socket_recv_buffer_size_force(socket, MAX_RCVBUF / 2)?)
}

/// Leaves it to TCP again how much a receiver may hold.
pub(super) fn uncap_rcvbuf(socket: impl AsFd) {
    let _before_linux_5_16 = sys::set_buf_lock(socket, 0);
}

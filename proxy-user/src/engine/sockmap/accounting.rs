//! What a socket holds and has held, and how much it may hold.

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

/// `write_seq` seen from outside: what was acknowledged and what was not. TCP_INFO first: bytes that
/// are acknowledged in between are then missing, never counted twice.
pub(super) fn bytes_written(to: impl AsFd) -> io::Result<u64> {
    let acked = sys::tcp_info(&to)?.bytes_acked;
    Ok(acked + sys::unacked_bytes(&to)? as u64)
}

/// The same while nobody writes: exact.
pub(in super::super) fn bytes_written_exact(to: impl AsFd) -> io::Result<u64> {
    if sys::unacked_bytes(&to)? == 0 {
        return Ok(sys::tcp_info(&to)?.bytes_acked);
    }
    read_until_stable(
        || Ok(sys::tcp_info(&to)?.bytes_acked),
        |acked| Ok(acked + sys::unacked_bytes(&to)? as u64),
    )
}

/// Bytes of a socket that were taken from it, by whomever.
pub(super) fn bytes_read_exact(from: impl AsFd) -> io::Result<u64> {
    read_until_stable(
        || Ok(sys::tcp_info(&from)?.bytes_received),
        |received| Ok(received.saturating_sub(rustix::io::ioctl_fionread(&from)?)),
    )
}

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

/// What `look` finds while a counter that only grows stands still: peers may send and acknowledge at
/// any time.
fn read_until_stable(
    counter: impl Fn() -> io::Result<u64>,
    compute: impl Fn(u64) -> io::Result<u64>,
) -> io::Result<u64> {
    let mut before = counter()?;
    for _ in 0..100 {
        let value = compute(before)?;
        let after = counter()?;
        if before == after {
            return Ok(value);
        }
        before = after;
    }
    Err(io::ErrorKind::TimedOut.into())
}

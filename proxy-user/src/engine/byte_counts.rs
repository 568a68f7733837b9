//! Bytes that a socket has sent and received, as TCP counts them.

use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// Attempts to read two counters with no change between them.
const MAX_ATTEMPTS: u32 = 100;

/// Bytes written to a socket: the acknowledged ones (`TCP_INFO`) and the others (`SIOCOUTQ`).
///
/// Reads the acknowledged ones first. Bytes that the peer acknowledges between the two system calls
/// are missing from the sum then, and never counted twice.
pub(super) fn bytes_written(to: impl AsFd) -> io::Result<u64> {
    let acked = sys::tcp_info(&to)?.bytes_acked;
    Ok(acked + sys::unacked_bytes(&to)? as u64)
}

/// Bytes written to a socket, exactly. Nobody may write meanwhile.
pub(super) fn bytes_written_exact(to: impl AsFd) -> io::Result<u64> {
    if sys::unacked_bytes(&to)? == 0 {
        return Ok(sys::tcp_info(&to)?.bytes_acked);
    }
    read_until_stable(
        || Ok(sys::tcp_info(&to)?.bytes_acked),
        |acked| Ok(acked + sys::unacked_bytes(&to)? as u64),
    )
}

/// Bytes read from a socket, exactly: the received ones less those that wait (`FIONREAD`). Nobody may
/// read meanwhile.
pub(super) fn bytes_read_exact(from: impl AsFd) -> io::Result<u64> {
    read_until_stable(
        || Ok(sys::tcp_info(&from)?.bytes_received),
        |received| Ok(received.saturating_sub(rustix::io::ioctl_fionread(&from)?)),
    )
}

/// Returns what `compute` makes of a counter that has the same value before and after.
///
/// The peer may send or acknowledge at any time, and the counter only grows.
fn read_until_stable(
    counter: impl Fn() -> io::Result<u64>,
    compute: impl Fn(u64) -> io::Result<u64>,
) -> io::Result<u64> {
    let mut before = counter()?;
    for _ in 0..MAX_ATTEMPTS {
        let value = compute(before)?;
        let after = counter()?;
        if before == after {
            return Ok(value);
        }
        before = after;
    }
    Err(io::ErrorKind::TimedOut.into())
}

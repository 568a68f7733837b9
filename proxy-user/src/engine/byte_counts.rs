//! How many bytes a socket has sent and received, as TCP counts them.

use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// `write_seq` seen from outside: what was acknowledged and what was not. TCP_INFO first: bytes that
/// are acknowledged in between are then missing, never counted twice.
pub(super) fn bytes_written(to: impl AsFd) -> io::Result<u64> {
    let acked = sys::tcp_info(&to)?.bytes_acked;
    Ok(acked + sys::unacked_bytes(&to)? as u64)
}

/// The same while nobody writes: exact.
pub(super) fn bytes_written_exact(to: impl AsFd) -> io::Result<u64> {
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

//! The two directions of a flow in user space, whatever carries the bytes.
//!
//! Each direction ends on its own: an end of stream is passed on as `shutdown`, and the other
//! direction goes on for as long as it likes. What breaks is passed on as a reset, after the bytes
//! that came before it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::select;

use super::classifier::{TrafficClass, TrafficClassifier};
use super::{FlowEnd, Peer, Socket, SocketPair};

/// Holds the bytes between a read and a write. Holds no resource while it holds no bytes.
pub(super) trait Transfer {
    /// Takes what the socket has. `Ok(Filled { bytes: 0, .. })` is the end of stream.
    fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome>;
    /// Gives what it can to the socket and says how many bytes that were.
    fn write_to(&mut self, to: BorrowedFd<'_>) -> io::Result<usize>;
    /// Bytes taken and not given.
    fn buffered(&self) -> usize;
    /// Nothing is held and nothing is coming: give back the buffer or pipe.
    fn release(&mut self);
}

/// What a read brought.
pub(super) struct ReadOutcome {
    pub(super) bytes: usize,
    /// The socket had no more than that, for certain: asking again would only say so.
    pub(super) drained: bool,
}

/// A socket that can no longer be used, and which direction's half of the work found out.
#[derive(Clone, Copy, Debug)]
struct SocketError {
    peer: Peer,
    op: IoOp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IoOp {
    Read,
    Write,
}

/// What a relay came to.
pub(super) enum RelayResult {
    Finished(FlowEnd),
    /// A flow that `pace` found ripe, at an instant when nothing of it is in user space.
    Classified(TrafficClass),
}

/// How a direction was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectionResult {
    Finished,
    Classified(TrafficClass),
}

/// Carries both directions to their end, or until `pace`, if there is one, says that they are ripe.
pub(super) async fn relay<C: Transfer>(
    pair: &SocketPair,
    up: C,
    down: C,
    classifier: Option<&TrafficClassifier>,
) -> RelayResult {
    let write_failed = AtomicBool::new(false);
    let up = relay_direction(pair, Peer::Client, up, &write_failed, classifier);
    let down = relay_direction(pair, Peer::Backend, down, &write_failed, classifier);
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (first, from) = select! {
        left = &mut up => (left, Peer::Client),
        left = &mut down => (left, Peer::Backend),
    };
    let mut other = match from {
        Peer::Client => down,
        Peer::Backend => up,
    };
    let result = match first {
        Ok(DirectionResult::Classified(class)) => Ok(DirectionResult::Classified(class)),
        Ok(DirectionResult::Finished) => select! {
            biased;
            left = &mut other => left,
            // Nobody reads this side any more, and it can still break.
            () = wait_for_error(pair.socket(from)) => Err(SocketError { peer: from, op: IoOp::Write }),
        },
        Err(error) if error.op == IoOp::Write => {
            // The dead side may have said something before it died: that still has a reader.
            let _also_broken = other.await;
            Err(error)
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(DirectionResult::Classified(class)) => RelayResult::Classified(class),
        Ok(DirectionResult::Finished) => RelayResult::Finished(FlowEnd::Closed),
        Err(SocketError { peer: Peer::Client, .. }) => RelayResult::Finished(FlowEnd::ClientReset),
        Err(SocketError { peer: Peer::Backend, .. }) => {
            RelayResult::Finished(FlowEnd::BackendReset)
        }
    }
}

/// One direction, from `side` to the other.
async fn relay_direction<C: Transfer>(
    pair: &SocketPair,
    peer: Peer,
    mut transfer: C,
    write_failed: &AtomicBool,
    classifier: Option<&TrafficClassifier>,
) -> Result<DirectionResult, SocketError> {
    let (other_peer, byte_count) = match peer {
        Peer::Client => (Peer::Backend, &pair.counters.bytes_up),
        Peer::Backend => (Peer::Client, &pair.counters.bytes_down),
    };
    let (from, to) = (pair.socket(peer), pair.socket(other_peer));
    let cannot_read = |_: io::Error| SocketError { peer, op: IoOp::Read };
    let cannot_write = |_: io::Error| {
        write_failed.store(true, Ordering::Relaxed);
        SocketError { peer: other_peer, op: IoOp::Write }
    };
    loop {
        from.ready(Interest::READABLE).await.map_err(cannot_read)?;
        let Some(ReadOutcome { bytes, drained }) =
            read_available(&mut transfer, from).map_err(cannot_read)?
        else {
            transfer.release();
            continue;
        };
        classifier.inspect(|pace| pace.on_received());
        match bytes {
            // A side that the other direction found dead reads as ended; that is no end of stream.
            0 if write_failed.load(Ordering::Relaxed) => return Ok(DirectionResult::Finished),
            0 => {
                return shutdown_write(to)
                    .map(|()| DirectionResult::Finished)
                    .map_err(cannot_write);
            }
            _ => write_buffered(&mut transfer, to, byte_count).await.map_err(cannot_write)?,
        }
        if drained {
            // No read follows that would find nothing and say so.
            transfer.release();
        }
        if let Some(class) = classifier.and_then(|pace| pace.on_sent(peer, bytes)) {
            return Ok(DirectionResult::Classified(class));
        }
    }
}

/// `None`: nothing there yet.
fn read_available<C: Transfer>(transfer: &mut C, from: &Socket) -> io::Result<Option<ReadOutcome>> {
    let mut outcome = None;
    // An error of kind WouldBlock makes tokio wait for the next event, so it also stands for "that
    // was all": it saves the read that would find nothing.
    let result = from.try_io(Interest::READABLE, || {
        let read = outcome.insert(transfer.read_from(from.as_fd())?);
        if read.drained { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match result {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(outcome),
    }
}

async fn write_buffered<C: Transfer>(
    transfer: &mut C,
    to: &Socket,
    byte_count: &AtomicU64,
) -> io::Result<()> {
    while transfer.buffered() > 0 {
        match to.try_io(Interest::WRITABLE, || transfer.write_to(to.as_fd())) {
            Ok(bytes) => {
                byte_count.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                to.ready(Interest::WRITABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shutdown_write(to: &Socket) -> io::Result<()> {
    Ok(rustix::net::shutdown(to, Shutdown::Write)?)
}

/// Waits for a socket error that no read or write is there to find.
async fn wait_for_error(socket: &Socket) {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

//! Relay of both directions of a flow in user space, for the copy and splice engines.
//!
//! Each direction ends on its own: the relay passes an end of stream on with shutdown(2), and the other
//! direction continues. It passes an error on as a reset, after the bytes that came before the error.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::select;

use super::classifier::{TrafficClass, TrafficClassifier};
use super::{FlowEnd, LocalErrorStage, Peer, Socket, SocketPair, is_local_error};

/// Moves the bytes of one direction: holds them between a read and a write.
pub(super) trait Transfer {
    /// Reads what the socket has. An outcome of 0 bytes is the end of stream.
    fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome>;
    /// Writes what the socket accepts, and returns the number of bytes.
    fn write_to(&mut self, to: BorrowedFd<'_>) -> io::Result<usize>;
    /// Returns the bytes that were read and not yet written.
    fn buffered(&self) -> usize;
    /// Returns the buffer or pipe to its pool. The relay calls it when no bytes are held and none wait.
    fn release(&mut self);
}

/// Result of a read.
pub(super) struct ReadOutcome {
    pub(super) bytes: usize,
    /// Whether the socket had no more bytes, for certain. Another read would find nothing.
    pub(super) drained: bool,
}

/// Why a direction ended early.
#[derive(Clone, Copy, Debug)]
enum RelayError {
    /// The connection to this peer failed, and this operation found it.
    Socket { peer: Peer, op: IoOp },
    /// This host could not carry the direction on.
    Local(LocalErrorStage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IoOp {
    Read,
    Write,
}

impl RelayError {
    fn new(peer: Peer, op: IoOp, error: &io::Error) -> Self {
        if !is_local_error(error) {
            return Self::Socket { peer, op };
        }
        let stage = match op {
            IoOp::Read => LocalErrorStage::Read,
            IoOp::Write => LocalErrorStage::Write,
        };
        stage.log(error);
        Self::Local(stage)
    }
}

/// Result of a relay.
pub(super) enum RelayResult {
    /// Both directions ended, or one failed.
    Finished(FlowEnd),
    /// The classifier has the class of the flow. No byte of the flow is in user space.
    Classified(TrafficClass),
}

/// What one engine made of a socket pair.
pub(super) enum StepResult {
    /// The flow ended, and its sockets are closed.
    Finished(FlowEnd),
    /// The flow still runs.
    Handover(Handover),
}

/// A running flow that another engine can continue: no byte of it is in user space.
pub(crate) struct Handover {
    pub(super) pair: SocketPair,
    /// Class of the last sample.
    pub(super) class: TrafficClass,
}

/// How a direction ended, or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectionResult {
    Finished,
    Classified(TrafficClass),
}

/// Relays both directions to their end, or until `classifier` has the class of the flow.
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
        result = &mut up => (result, Peer::Client),
        result = &mut down => (result, Peer::Backend),
    };
    let mut other = match from {
        Peer::Client => down,
        Peer::Backend => up,
    };
    let result = match first {
        Ok(DirectionResult::Classified(class)) => Ok(DirectionResult::Classified(class)),
        Ok(DirectionResult::Finished) => select! {
            biased;
            result = &mut other => result,
            // No read of this socket follows that would find an error.
            error = wait_for_error(pair.socket(from), from) => Err(error),
        },
        Err(error @ RelayError::Socket { op: IoOp::Write, .. }) => {
            // The failed peer may have sent bytes before, which the other peer still gets.
            let _also_fails = other.await;
            Err(error)
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(DirectionResult::Classified(class)) => RelayResult::Classified(class),
        Ok(DirectionResult::Finished) => RelayResult::Finished(FlowEnd::Closed),
        Err(RelayError::Socket { peer, .. }) => RelayResult::Finished(FlowEnd::reset_by(peer)),
        Err(RelayError::Local(stage)) => RelayResult::Finished(FlowEnd::LocalError(stage)),
    }
}

/// Relays one direction: from `peer` to the other peer.
async fn relay_direction<C: Transfer>(
    pair: &SocketPair,
    peer: Peer,
    mut transfer: C,
    write_failed: &AtomicBool,
    classifier: Option<&TrafficClassifier>,
) -> Result<DirectionResult, RelayError> {
    let (other_peer, byte_count) = match peer {
        Peer::Client => (Peer::Backend, &pair.counters.bytes_up),
        Peer::Backend => (Peer::Client, &pair.counters.bytes_down),
    };
    let (from, to) = (pair.socket(peer), pair.socket(other_peer));
    let cannot_read = |error: io::Error| RelayError::new(peer, IoOp::Read, &error);
    let cannot_write = |error: io::Error| {
        write_failed.store(true, Ordering::Relaxed);
        RelayError::new(other_peer, IoOp::Write, &error)
    };
    loop {
        from.ready(Interest::READABLE).await.map_err(cannot_read)?;
        let Some(ReadOutcome { bytes, drained }) =
            read_available(&mut transfer, from).map_err(cannot_read)?
        else {
            transfer.release();
            continue;
        };
        classifier.inspect(|classifier| classifier.on_received());
        match bytes {
            // A socket that failed in a write of the other direction reads as ended.
            0 if write_failed.load(Ordering::Relaxed) => return Ok(DirectionResult::Finished),
            0 => {
                return shutdown_write(to)
                    .map(|()| DirectionResult::Finished)
                    .map_err(cannot_write);
            }
            _ => write_buffered(&mut transfer, to, byte_count).await.map_err(cannot_write)?,
        }
        if drained {
            // No read follows that would find nothing and release the transfer.
            transfer.release();
        }
        if let Some(class) = classifier.and_then(|classifier| classifier.on_sent(peer, bytes)) {
            return Ok(DirectionResult::Classified(class));
        }
    }
}

/// Reads what waits in the socket; `None` if nothing does.
fn read_available<C: Transfer>(transfer: &mut C, from: &Socket) -> io::Result<Option<ReadOutcome>> {
    let mut outcome = None;
    // On `WouldBlock` tokio waits for the next event. A drained socket returns it too, which saves the
    // read that would find nothing.
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

/// Waits for an error of a socket that no read or write would find.
async fn wait_for_error(socket: &Socket, peer: Peer) -> RelayError {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => {}
            Ok(_) => return RelayError::Socket { peer, op: IoOp::Write },
            Err(error) => return RelayError::new(peer, IoOp::Write, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::io::Errno;
    use rustix::net::{RecvFlags, recv};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Fails to read, or reads one byte and fails to write it.
    struct FailingTransfer {
        op: IoOp,
        errno: Errno,
        buffered: usize,
    }

    impl Transfer for FailingTransfer {
        fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome> {
            recv(from, &mut [0; 1], RecvFlags::PEEK)?;
            if self.op == IoOp::Read {
                return Err(self.errno.into());
            }
            self.buffered = 1;
            Ok(ReadOutcome { bytes: 1, drained: true })
        }

        fn write_to(&mut self, _: BorrowedFd<'_>) -> io::Result<usize> {
            Err(self.errno.into())
        }

        fn buffered(&self) -> usize {
            self.buffered
        }

        fn release(&mut self) {}
    }

    /// A peer's socket, and the agent's socket to that peer.
    async fn connect() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (peer, accepted)
    }

    /// Ends a flow with an error of a transfer, and checks that both peers see a reset.
    async fn end_after(op: IoOp, errno: Errno) -> FlowEnd {
        let (mut client, to_client) = connect().await;
        let (mut backend, to_backend) = connect().await;
        socket2::SockRef::from(&to_client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        let pair = SocketPair::new(to_client, Socket::Tcp(to_backend), Arc::default()).unwrap();
        client.write_all(b"x").await.unwrap();
        let transfer = || FailingTransfer { op, errno, buffered: 0 };
        let RelayResult::Finished(end) = relay(&pair, transfer(), transfer(), None).await else {
            panic!("nobody classifies this flow");
        };
        pair.close(end).await;
        for peer in [&mut client, &mut backend] {
            let error = peer.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        end
    }

    #[tokio::test]
    async fn an_error_of_this_host_is_not_a_reset_by_a_peer() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            let read = LocalErrorStage::Read;
            assert_eq!(end_after(IoOp::Read, errno).await, FlowEnd::LocalError(read));
            let write = LocalErrorStage::Write;
            assert_eq!(end_after(IoOp::Write, errno).await, FlowEnd::LocalError(write));
        }
        for errno in [Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH] {
            assert_eq!(end_after(IoOp::Read, errno).await, FlowEnd::ClientReset);
        }
    }
}

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
use super::{FlowEnd, LocalErrorStage, Peer, Socket, SocketPair, is_local_error};

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

/// Why a direction ended early.
#[derive(Clone, Copy, Debug)]
enum RelayError {
    /// The socket to this peer failed, in this operation.
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

/// What a relay came to.
pub(super) enum RelayResult {
    Finished(FlowEnd),
    /// A flow that `pace` found ripe, at an instant when nothing of it is in user space.
    Classified(TrafficClass),
}

/// What one engine made of a pair, for a while.
pub(super) enum StepResult {
    Finished(FlowEnd),
    Handover(Handover),
}

/// A pair still running, and nothing of it is in user space: another engine may carry it on.
pub(crate) struct Handover {
    pub(super) pair: SocketPair,
    /// What it was like of late.
    pub(super) class: TrafficClass,
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
            error = wait_for_error(pair.socket(from), from) => Err(error),
        },
        Err(error @ RelayError::Socket { op: IoOp::Write, .. }) => {
            // The dead side may have said something before it died: that still has a reader.
            let _also_broken = other.await;
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

/// One direction, from `side` to the other.
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

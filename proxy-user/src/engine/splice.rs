//! Splice engine: splice(2) moves pages from socket to pipe to socket. Small messages are copied, which
//! costs less.
//!
//! A direction takes a pipe from a pool when bytes arrive and returns it empty when the socket has no
//! more. A pipe that holds bytes when its flow fails is closed, so that no other flow gets them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::classifier::TrafficClassifier;
use super::copy::{CopyEngine, CopyTransfer};
use super::transfer::{Handover, ReadOutcome, RelayResult, StepResult, Transfer, relay};
use super::{DeclineReason, Declined, Engine, EngineKind, FlowEnd, SocketPair};
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Bytes of a pipe and of one splice(2). Where `fs.pipe-max-size` is less, a pipe keeps its default size.
const PIPE_CAPACITY: usize = 256 * 1024;

/// Fewest slots of a pipe, each of at least one byte. A splice(2) of fewer bytes did not end because the
/// pipe was full (`pipe_resize_ring`, fs/pipe.c; a default pipe has 16).
const PIPE_SLOTS: usize = 16;

/// Bytes of a read up to which a copy is as fast (docs/performance/notebook.md). With a pipe only another
/// system call shows that the socket has no more.
const MAX_COPIED_READ: usize = 8 * 1024;

/// Most pipes in the pool.
const MAX_POOLED_PIPES: usize = 256;

/// The splice engine. Clones share the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpliceEngine {
    pool: Arc<Mutex<Vec<Pipe>>>,
    copy: CopyEngine,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    buffered: usize,
}

impl Engine for SpliceEngine {
    type Declined = Declined;

    async fn carry(&self, mut pair: SocketPair) -> Result<FlowEnd, Declined> {
        loop {
            match self.carry_until_classified(pair, None).await? {
                StepResult::Finished(end) => return Ok(end),
                StepResult::Handover(handover) => pair = handover.pair,
            }
        }
    }
}

impl SpliceEngine {
    /// Carries a pair to its end, or until `classifier` has its class.
    pub(super) async fn carry_until_classified(
        &self,
        pair: SocketPair,
        classifier: Option<&TrafficClassifier>,
    ) -> Result<StepResult, Declined> {
        match self.take_pipe() {
            Ok(pipe) => self.return_pipe(pipe),
            Err(_) => return Err(Declined { pair, reason: DeclineReason::PipeUnavailable }),
        }
        pair.set_engine(EngineKind::Splice);
        match relay(&pair, self.transfer(), self.transfer(), classifier).await {
            RelayResult::Finished(end) => Ok(StepResult::Finished(pair.close(end).await)),
            RelayResult::Classified(class) => Ok(StepResult::Handover(Handover { pair, class })),
        }
    }

    pub(super) fn transfer(&self) -> SpliceTransfer {
        SpliceTransfer {
            engine: self.clone(),
            pipe: None,
            copy: self.copy.transfer(),
            expects_small: true,
        }
    }

    /// A transfer that only copies, for bytes that splice(2) does not see.
    pub(super) fn copy_fallback(&self) -> CopyTransfer {
        self.copy.transfer()
    }

    fn take_pipe(&self) -> io::Result<Pipe> {
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.map_or_else(Pipe::new, Ok)
    }

    fn return_pipe(&self, pipe: Pipe) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.buffered == 0 && pool.len() < MAX_POOLED_PIPES {
            pool.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Fails above the user's share (`fs.pipe-user-pages-soft`); a smaller pipe does the same work.
        let _default_size = rustix::pipe::fcntl_setpipe_size(&write, PIPE_CAPACITY);
        Ok(Self { read, write, buffered: 0 })
    }
}

/// Splices one direction. Holds a pipe while it holds bytes.
pub(super) struct SpliceTransfer {
    engine: SpliceEngine,
    pipe: Option<Pipe>,
    /// Copies small messages, and larger ones while no pipe can be opened.
    copy: CopyTransfer,
    /// Whether the last read returned a small message, so that the next one probably does.
    expects_small: bool,
}

impl SpliceTransfer {
    fn read_into_pipe(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome> {
        let pipe = match self.pipe.take().map_or_else(|| self.engine.take_pipe(), Ok) {
            Ok(pipe) => self.pipe.insert(pipe),
            Err(_) => return self.copy.read_from(from),
        };
        let bytes = splice(from, &pipe.write, PIPE_CAPACITY)?;
        pipe.buffered += bytes;
        Ok(ReadOutcome { bytes, drained: bytes > 0 && bytes < PIPE_SLOTS })
    }
}

impl Transfer for SpliceTransfer {
    fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome> {
        let outcome = if self.expects_small {
            self.copy.read_from(from)?
        } else {
            self.read_into_pipe(from)?
        };
        self.expects_small = outcome.bytes <= MAX_COPIED_READ;
        Ok(outcome)
    }

    fn write_to(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        if self.copy.buffered() > 0 {
            return self.copy.write_to(to);
        }
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        let bytes = splice(&pipe.read, to, pipe.buffered)?;
        pipe.buffered -= bytes;
        Ok(bytes)
    }

    fn buffered(&self) -> usize {
        self.copy.buffered() + self.pipe.as_ref().map_or(0, |pipe| pipe.buffered)
    }

    fn release(&mut self) {
        self.copy.release();
        if let Some(pipe) = self.pipe.take() {
            self.engine.return_pipe(pipe);
        }
    }
}

impl Drop for SpliceTransfer {
    fn drop(&mut self) {
        self.release();
    }
}

fn splice(
    from: impl std::os::fd::AsFd,
    to: impl std::os::fd::AsFd,
    bytes: usize,
) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let bytes_moved =
        rustix::io::retry_on_intr(|| rustix::pipe::splice(&from, None, &to, None, bytes, flags))?;
    Ok(bytes_moved)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::{MAX_COPIED_READ, SpliceEngine, Transfer as _};

    #[test]
    fn read_after_a_small_read_is_copied_and_after_a_large_read_is_spliced() {
        let (mut client, from) = UnixStream::pair().unwrap();
        let (to, _backend) = UnixStream::pair().unwrap();
        let mut transfer = SpliceEngine::default().transfer();
        let messages = [
            (1, false),
            (MAX_COPIED_READ, false),
            (MAX_COPIED_READ + 1, false),
            (MAX_COPIED_READ + 1, true),
        ];
        for (bytes, is_spliced) in
            messages.into_iter().chain([(1, true), (MAX_COPIED_READ + 1, false)])
        {
            client.write_all(&vec![7; bytes]).unwrap();
            assert_eq!(transfer.read_from(from.as_fd()).unwrap().bytes, bytes);
            assert_eq!(transfer.pipe.is_some(), is_spliced, "{bytes}");
            while transfer.buffered() > 0 {
                transfer.write_to(to.as_fd()).unwrap();
            }
            transfer.release();
        }
    }
}

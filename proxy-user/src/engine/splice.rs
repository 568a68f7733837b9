//! splice(2): the kernel moves pages from socket to pipe to socket, user space moves none of them. What is small
//! is copied instead, which takes less.
//!
//! A pipe is taken from a pool when bytes arrive and given back, empty, when the socket has no
//! more. A pipe that still holds bytes when its flow breaks is closed: it must not meet another.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::copy::{Copy, CopyCarrier};
use super::pace::Pace;
use super::relay::{Carrier, Filled, Relayed, relay};
use super::{Carried, Declined, End, Engine, Grown, Pair, Tier};
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Bytes asked for at once, and of pipe; above fs.pipe-max-size the kernel's default must do.
const PIPE: usize = 256 * 1024;

/// Slots of a pipe, each at least one byte: a splice of fewer bytes than that cannot have been cut
/// short by a full pipe (pipe_resize_ring, fs/pipe.c; the default pipe has 16).
const SLOTS: usize = 16;

/// Bytes of a read up to which copying takes no longer (docs/benchmarks.md): only another system call shows that a
/// pipe has got all there was.
const SMALL: usize = 8 * 1024;

/// Empty pipes kept for the next burst.
const POOL: usize = 256;

/// Splices through pipes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splice {
    pool: Arc<Mutex<Vec<Pipe>>>,
    copy: Copy,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Engine for Splice {
    type Declined = Declined;

    async fn carry(&self, mut pair: Pair) -> Result<End, Declined> {
        loop {
            match self.carry_until_ripe(pair, None).await? {
                Carried::Ended(end) => return Ok(end),
                Carried::Grown(same) => pair = same.pair,
            }
        }
    }
}

impl Splice {
    /// Carries a pair to its end, or until `pace` finds it ripe.
    pub(super) async fn carry_until_ripe(
        &self,
        pair: Pair,
        pace: Option<&Pace>,
    ) -> Result<Carried, Declined> {
        match self.take() {
            Ok(pipe) => self.give(pipe),
            Err(_) => return Err(Declined { pair, reason: "no_pipe" }),
        }
        pair.settle(Tier::Splice);
        match relay(&pair, self.carrier(), self.carrier(), pace).await {
            Relayed::Ended(end) => Ok(Carried::Ended(pair.close(end).await)),
            Relayed::Ripe(kind) => Ok(Carried::Grown(Grown { pair, kind })),
        }
    }

    pub(super) fn carrier(&self) -> SpliceCarrier {
        SpliceCarrier {
            engine: self.clone(),
            pipe: None,
            spare: self.copy.carrier(),
            is_small: true,
        }
    }

    /// Copies instead, for bytes that splice(2) does not see.
    pub(super) fn spare(&self) -> CopyCarrier {
        self.copy.carrier()
    }

    fn take(&self) -> io::Result<Pipe> {
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.map_or_else(Pipe::new, Ok)
    }

    fn give(&self, pipe: Pipe) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.held == 0 && pool.len() < POOL {
            pool.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Beyond the user's share (pipe-user-pages-soft) a smaller pipe does the same work.
        let _default_size = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
        Ok(Self { read, write, held: 0 })
    }
}

/// One direction's pipe, while there is something in it.
pub(super) struct SpliceCarrier {
    engine: Splice,
    pipe: Option<Pipe>,
    /// Carries what is small, and a burst for which there is no pipe (descriptors ran out in mid-flow).
    spare: CopyCarrier,
    /// Whether the next read is believed to bring little, as the last one did.
    is_small: bool,
}

impl SpliceCarrier {
    fn fill_pipe(&mut self, from: BorrowedFd<'_>) -> io::Result<Filled> {
        let pipe = match self.pipe.take().map_or_else(|| self.engine.take(), Ok) {
            Ok(pipe) => self.pipe.insert(pipe),
            Err(_) => return self.spare.fill(from),
        };
        let bytes = splice(from, &pipe.write, PIPE)?;
        pipe.held += bytes;
        Ok(Filled { bytes, all: bytes > 0 && bytes < SLOTS })
    }
}

impl Carrier for SpliceCarrier {
    fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<Filled> {
        let filled = if self.is_small { self.spare.fill(from)? } else { self.fill_pipe(from)? };
        self.is_small = filled.bytes <= SMALL;
        Ok(filled)
    }

    fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        if self.spare.held() > 0 {
            return self.spare.drain(to);
        }
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        let bytes = splice(&pipe.read, to, pipe.held)?;
        pipe.held -= bytes;
        Ok(bytes)
    }

    fn held(&self) -> usize {
        self.spare.held() + self.pipe.as_ref().map_or(0, |pipe| pipe.held)
    }

    fn rest(&mut self) {
        self.spare.rest();
        if let Some(pipe) = self.pipe.take() {
            self.engine.give(pipe);
        }
    }
}

impl Drop for SpliceCarrier {
    fn drop(&mut self) {
        self.rest();
    }
}

fn splice(
    from: impl std::os::fd::AsFd,
    to: impl std::os::fd::AsFd,
    bytes: usize,
) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let moved =
        rustix::io::retry_on_intr(|| rustix::pipe::splice(&from, None, &to, None, bytes, flags))?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::{Carrier as _, SMALL, Splice};

    #[test]
    fn what_follows_little_is_copied_and_what_follows_much_is_spliced() {
        let (mut client, from) = UnixStream::pair().unwrap();
        let (to, _backend) = UnixStream::pair().unwrap();
        let mut carrier = Splice::default().carrier();
        let messages = [(1, false), (SMALL, false), (SMALL + 1, false), (SMALL + 1, true)];
        for (bytes, is_spliced) in messages.into_iter().chain([(1, true), (SMALL + 1, false)]) {
            client.write_all(&vec![7; bytes]).unwrap();
            assert_eq!(carrier.fill(from.as_fd()).unwrap().bytes, bytes);
            assert_eq!(carrier.pipe.is_some(), is_spliced, "{bytes}");
            while carrier.held() > 0 {
                carrier.drain(to.as_fd()).unwrap();
            }
            carrier.rest();
        }
    }
}

//! The reference engine: read(2) and write(2) through one buffer for each direction.
//!
//! A buffer is taken from a pool when bytes arrive and given back when the socket has no more, so
//! an idle flow costs two sockets and a task.

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::pace::Pace;
use super::relay::{Carrier, Filled, Relayed, relay};
use super::{Carried, End, Engine, Grown, Pair, Tier};

/// Bytes in a buffer: one system call moves as much as a GRO super-packet holds.
const BUFFER: usize = 64 * 1024;

/// Buffers kept for the next burst, 16 MiB of them.
const POOL: usize = 256;

type Buffer = Box<[u8]>;

/// Copies through user space.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copy {
    pool: Arc<Mutex<Vec<Buffer>>>,
}

impl Engine for Copy {
    type Declined = Infallible;

    async fn carry(&self, mut pair: Pair) -> Result<End, Infallible> {
        loop {
            match self.carry_until_ripe(pair, None).await {
                Carried::Ended(end) => return Ok(end),
                Carried::Grown(same) => pair = same.pair,
            }
        }
    }
}

impl Copy {
    /// Carries a pair to its end, or until `pace` finds it ripe.
    pub(super) async fn carry_until_ripe(&self, pair: Pair, pace: Option<&Pace>) -> Carried {
        pair.settle(Tier::Copy);
        match relay(&pair, self.carrier(), self.carrier(), pace).await {
            Relayed::Ended(end) => Carried::Ended(pair.close(end).await),
            Relayed::Ripe(kind) => Carried::Grown(Grown { pair, kind }),
        }
    }

    pub(super) fn carrier(&self) -> CopyCarrier {
        CopyCarrier { engine: self.clone(), buffer: None, start: 0, end: 0 }
    }

    fn take(&self) -> Buffer {
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.unwrap_or_else(|| vec![0; BUFFER].into())
    }

    fn give(&self, buffer: Buffer) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOL {
            pool.push(buffer);
        }
    }
}

/// One direction's buffer, while there is something in it.
pub(super) struct CopyCarrier {
    engine: Copy,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Carrier for CopyCarrier {
    fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<Filled> {
        let buffer = self.buffer.get_or_insert_with(|| self.engine.take());
        let (bytes, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(from, &mut buffer[..], rustix::net::RecvFlags::empty())
        })?;
        (self.start, self.end) = (0, bytes);
        Ok(Filled { bytes, all: bytes > 0 && bytes < BUFFER })
    }

    fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let held = self.buffer.as_deref().map_or(&[][..], |buffer| &buffer[self.start..self.end]);
        let bytes = rustix::io::retry_on_intr(|| {
            rustix::net::send(to, held, rustix::net::SendFlags::NOSIGNAL)
        })?;
        self.start += bytes;
        Ok(bytes)
    }

    fn held(&self) -> usize {
        self.end - self.start
    }

    fn rest(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.engine.give(buffer);
        }
    }
}

impl Drop for CopyCarrier {
    fn drop(&mut self) {
        self.rest();
    }
}

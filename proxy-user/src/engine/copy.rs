//! Copy engine, the reference: recv(2) and send(2) through one buffer for each direction.
//!
//! A direction takes a buffer from a pool when bytes arrive and returns it when the socket has no more.
//! So an idle flow costs two sockets and a task.

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::classifier::TrafficClassifier;
use super::transfer::{Handover, ReadOutcome, RelayResult, StepResult, Transfer, relay};
use super::{Engine, EngineKind, FlowEnd, SocketPair};

/// Bytes of a buffer. One system call moves as much as a packet that GRO has merged.
const BUFFER_LEN: usize = 64 * 1024;

/// Most buffers in the pool. They take 16 MiB.
const MAX_POOLED_BUFFERS: usize = 256;

type Buffer = Box<[u8]>;

/// The copy engine. Clones share the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyEngine {
    pool: Arc<Mutex<Vec<Buffer>>>,
}

impl Engine for CopyEngine {
    type Declined = Infallible;

    async fn carry(&self, mut pair: SocketPair) -> Result<FlowEnd, Infallible> {
        loop {
            match self.carry_until_classified(pair, None).await {
                StepResult::Finished(end) => return Ok(end),
                StepResult::Handover(handover) => pair = handover.pair,
            }
        }
    }
}

impl CopyEngine {
    /// Carries a pair to its end, or until `classifier` has its class.
    pub(super) async fn carry_until_classified(
        &self,
        pair: SocketPair,
        classifier: Option<&TrafficClassifier>,
    ) -> StepResult {
        pair.set_engine(EngineKind::Copy);
        match relay(&pair, self.transfer(), self.transfer(), classifier).await {
            RelayResult::Finished(end) => StepResult::Finished(pair.close(end).await),
            RelayResult::Classified(class) => StepResult::Handover(Handover { pair, class }),
        }
    }

    pub(super) fn transfer(&self) -> CopyTransfer {
        CopyTransfer { engine: self.clone(), buffer: None, start: 0, end: 0 }
    }

    fn take_buffer(&self) -> Buffer {
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.unwrap_or_else(|| vec![0; BUFFER_LEN].into())
    }

    fn return_buffer(&self, buffer: Buffer) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < MAX_POOLED_BUFFERS {
            pool.push(buffer);
        }
    }
}

/// Copies one direction. Holds a buffer while it holds bytes.
pub(super) struct CopyTransfer {
    engine: CopyEngine,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Transfer for CopyTransfer {
    fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<ReadOutcome> {
        let buffer = self.buffer.get_or_insert_with(|| self.engine.take_buffer());
        let (bytes, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(from, &mut buffer[..], rustix::net::RecvFlags::empty())
        })?;
        (self.start, self.end) = (0, bytes);
        Ok(ReadOutcome { bytes, drained: bytes > 0 && bytes < BUFFER_LEN })
    }

    fn write_to(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let unsent = self.buffer.as_deref().map_or(&[][..], |buffer| &buffer[self.start..self.end]);
        let bytes = rustix::io::retry_on_intr(|| {
            rustix::net::send(to, unsent, rustix::net::SendFlags::NOSIGNAL)
        })?;
        self.start += bytes;
        Ok(bytes)
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.engine.return_buffer(buffer);
        }
    }
}

impl Drop for CopyTransfer {
    fn drop(&mut self) {
        self.release();
    }
}

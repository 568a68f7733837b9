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

use super::pace::{Kind, Pace};
use super::{End, Pair, Side, Socket};

/// Holds the bytes between a read and a write. Holds no resource while it holds no bytes.
pub(super) trait Carrier {
    /// Takes what the socket has. `Ok(Filled { bytes: 0, .. })` is the end of stream.
    fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<Filled>;
    /// Gives what it can to the socket and says how many bytes that were.
    fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize>;
    /// Bytes taken and not given.
    fn held(&self) -> usize;
    /// Nothing is held and nothing is coming: give back the buffer or pipe.
    fn rest(&mut self);
}

/// What a read brought.
pub(super) struct Filled {
    pub(super) bytes: usize,
    /// The socket had no more than that, for certain: asking again would only say so.
    pub(super) all: bool,
}

/// A socket that can no longer be used, and which direction's half of the work found out.
#[derive(Clone, Copy, Debug)]
struct Broken {
    side: Side,
    by: Half,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Read,
    Write,
}

/// What a relay came to.
pub(super) enum Relayed {
    Ended(End),
    /// A flow that `pace` found ripe, at an instant when nothing of it is in user space.
    Ripe(Kind),
}

/// How a direction was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Ended,
    Ripe(Kind),
}

/// Carries both directions to their end, or until `pace`, if there is one, says that they are ripe.
pub(super) async fn relay<C: Carrier>(pair: &Pair, up: C, down: C, pace: Option<&Pace>) -> Relayed {
    let broken = AtomicBool::new(false);
    let up = pump(pair, Side::Client, up, &broken, pace);
    let down = pump(pair, Side::Backend, down, &broken, pace);
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (first, from) = select! {
        left = &mut up => (left, Side::Client),
        left = &mut down => (left, Side::Backend),
    };
    let mut other = match from {
        Side::Client => down,
        Side::Backend => up,
    };
    let left = match first {
        Ok(Left::Ripe(kind)) => Ok(Left::Ripe(kind)),
        Ok(Left::Ended) => select! {
            biased;
            left = &mut other => left,
            // Nobody reads this side any more, and it can still break.
            () = failure(pair.socket(from)) => Err(Broken { side: from, by: Half::Write }),
        },
        Err(broken) if broken.by == Half::Write => {
            // The dead side may have said something before it died: that still has a reader.
            let _also_broken = other.await;
            Err(broken)
        }
        Err(broken) => Err(broken),
    };
    match left {
        Ok(Left::Ripe(kind)) => Relayed::Ripe(kind),
        Ok(Left::Ended) => Relayed::Ended(End::Closed),
        Err(Broken { side: Side::Client, .. }) => Relayed::Ended(End::ClientReset),
        Err(Broken { side: Side::Backend, .. }) => Relayed::Ended(End::BackendReset),
    }
}

/// One direction, from `side` to the other.
async fn pump<C: Carrier>(
    pair: &Pair,
    side: Side,
    mut carrier: C,
    broken: &AtomicBool,
    pace: Option<&Pace>,
) -> Result<Left, Broken> {
    let (to_side, moved) = match side {
        Side::Client => (Side::Backend, &pair.tally.up),
        Side::Backend => (Side::Client, &pair.tally.down),
    };
    let (from, to) = (pair.socket(side), pair.socket(to_side));
    let cannot_read = |_: io::Error| Broken { side, by: Half::Read };
    let cannot_write = |_: io::Error| {
        broken.store(true, Ordering::Relaxed);
        Broken { side: to_side, by: Half::Write }
    };
    loop {
        from.ready(Interest::READABLE).await.map_err(cannot_read)?;
        let Some(Filled { bytes, all }) = fill(&mut carrier, from).map_err(cannot_read)? else {
            carrier.rest();
            continue;
        };
        pace.inspect(|pace| pace.taken());
        match bytes {
            // A side that the other direction found dead reads as ended; that is no end of stream.
            0 if broken.load(Ordering::Relaxed) => return Ok(Left::Ended),
            0 => return end_of_stream(to).map(|()| Left::Ended).map_err(cannot_write),
            _ => drain(&mut carrier, to, moved).await.map_err(cannot_write)?,
        }
        if all {
            // No read follows that would find nothing and say so.
            carrier.rest();
        }
        if let Some(kind) = pace.and_then(|pace| pace.given(side, bytes)) {
            return Ok(Left::Ripe(kind));
        }
    }
}

/// `None`: nothing there yet.
fn fill<C: Carrier>(carrier: &mut C, from: &Socket) -> io::Result<Option<Filled>> {
    let mut got = None;
    // An error of kind WouldBlock makes tokio wait for the next event, so it also stands for "that
    // was all": it saves the read that would find nothing.
    let more = from.try_io(Interest::READABLE, || {
        let filled = got.insert(carrier.fill(from.as_fd())?);
        if filled.all { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match more {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(got),
    }
}

async fn drain<C: Carrier>(carrier: &mut C, to: &Socket, moved: &AtomicU64) -> io::Result<()> {
    while carrier.held() > 0 {
        match to.try_io(Interest::WRITABLE, || carrier.drain(to.as_fd())) {
            Ok(bytes) => {
                moved.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                to.ready(Interest::WRITABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn end_of_stream(to: &Socket) -> io::Result<()> {
    Ok(rustix::net::shutdown(to, Shutdown::Write)?)
}

/// Waits for a socket error that no read or write is there to find.
async fn failure(socket: &Socket) {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

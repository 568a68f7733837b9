//! One direction of a flow in the kernel: its account, and when it has ended.

use std::io;
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snisplit_common::abi::{Flow, State};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::super::Side;
use super::super::relay::Carrier;
use super::super::splice::Splice;
use crate::kernel::{self, KernelError, Verdict};
use crate::sys;

/// Pauses while the kernel empties a backlog: it has no event for that.
pub(super) const PAUSE: (Duration, Duration) =
    (Duration::from_micros(200), Duration::from_millis(20));

/// A direction, known by the socket that receives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) side: Side,
    pub(super) cookie: u64,
    /// Bytes handed to the sender's TCP before the flow began.
    handed: u64,
    /// Bytes of the receiver that were read before the flow began.
    read: u64,
}

/// The socket that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    From,
    To,
}

/// A socket that tokio does not watch until it must: it would wake for every packet.
#[derive(Debug)]
pub(super) struct Quiet {
    socket: Arc<TcpStream>,
    /// Both directions of a flow may need it.
    watched: OnceLock<AsyncFd<Arc<TcpStream>>>,
}

/// The two sockets of a direction.
#[derive(Clone, Copy)]
pub(super) struct Sockets<'s> {
    pub(super) from: &'s Quiet,
    pub(super) to: &'s Quiet,
}

impl Quiet {
    /// Takes a socket out of tokio's sight.
    pub(super) fn new(socket: tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self { socket: Arc::new(socket.into_std()?), watched: OnceLock::new() })
    }

    fn watched(&self) -> io::Result<&AsyncFd<Arc<TcpStream>>> {
        if self.watched.get().is_none() {
            let both = Interest::READABLE | Interest::WRITABLE;
            // Both directions run in one task, so nobody else sets it in between.
            let _ours = self.watched.set(sys::watch(Arc::clone(&self.socket), both)?);
        }
        self.watched.get().ok_or_else(|| io::ErrorKind::Other.into())
    }
}

impl Deref for Quiet {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsFd for Quiet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a socket has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Open,
    /// Its peer sends no more.
    Ended,
    Broken,
}

/// Asks without taking the error off the socket.
pub(super) fn condition(socket: &TcpStream) -> Condition {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let asked = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&at_once)));
    let found = polled[0].revents();
    match asked {
        Ok(_) if found.contains(PollFlags::ERR) => Condition::Broken,
        Ok(_) if found.intersects(PollFlags::RDHUP | PollFlags::HUP) => Condition::Ended,
        Ok(_) => Condition::Open,
        Err(_) => Condition::Broken,
    }
}

impl Lane {
    /// Takes stock of two sockets that nobody reads or writes meanwhile.
    pub(super) fn open(side: Side, from: &impl AsFd, to: &impl AsFd) -> Result<Self, KernelError> {
        let cookie = kernel::cookie(from)?;
        // Two looks that agree have nothing in between.
        let handed = agreed(|| handed(to))?;
        let read = agreed(|| {
            let received = sys::tcp_info(from)?.bytes_received;
            Ok(received - rustix::io::ioctl_fionread(from)?)
        })?;
        Ok(Self { side, cookie, handed, read })
    }

    /// The program's account; a poisoned one is a broken receiver.
    pub(super) fn flow(&self, verdict: &Verdict) -> Result<Flow, Broken> {
        let flow = verdict.flow(self.cookie);
        flow.filter(|flow| flow.state != State::Poisoned).ok_or(Broken::From)
    }

    /// Whether the sender's TCP has everything so far, the kernel's backlog included.
    fn is_handed(&self, to: &TcpStream, sent: u64) -> Result<bool, Broken> {
        let handed = handed(to).map_err(|_| Broken::To)?;
        // Fewer than at first: an acknowledgement came between the two looks.
        Ok(handed.saturating_sub(self.handed) >= sent)
    }

    /// Whether every byte before the receiver's end is with the sender's TCP.
    pub(super) fn is_drained(
        &self,
        verdict: &Verdict,
        sockets: Sockets<'_>,
    ) -> Result<bool, Broken> {
        // The FIN counts as a byte, and may be known before the bytes in front of it have gone
        // through the program.
        let received = sys::tcp_info(sockets.from).map_err(|_| Broken::From)?.bytes_received;
        let redirected = self.flow(verdict)?.redirected;
        Ok(redirected + 1 == received - self.read && self.is_handed(sockets.to, redirected)?)
    }

    /// Carries the rest of a direction that the program has given up, to its end, behind what the
    /// kernel took for it.
    ///
    /// Out of the program's sight the receiver is a socket like any other. Where bytes were left to
    /// us before that, it must go back: only under the program does reading them move the socket on
    /// (`tcp_bpf_recvmsg_parser` keeps `copied_seq`, `tcp_bpf_recvmsg` does not), and splice(2) does
    /// not see them.
    pub(super) async fn leave(
        &self,
        verdict: &Verdict,
        sockets: Sockets<'_>,
        splice: &Splice,
        told: impl Fn(usize),
    ) -> Result<(), Broken> {
        verdict.remove_source(self.cookie);
        let is_left_bytes = self.flow(verdict)?.passed > 0;
        if is_left_bytes {
            verdict.add_source(self.cookie, &**sockets.from).map_err(|_| Broken::From)?;
        }
        self.wait_handed(verdict, sockets.to).await?;
        match is_left_bytes {
            true => pump(sockets, splice.spare(), told).await,
            false => pump(sockets, splice.carrier(), told).await,
        }
    }

    /// Waits until the sender's TCP has what the kernel took for it.
    pub(super) async fn wait_handed(
        &self,
        verdict: &Verdict,
        to: &TcpStream,
    ) -> Result<(), Broken> {
        let mut pause = PAUSE.0;
        loop {
            if self.is_handed(to, self.flow(verdict)?.redirected)? {
                return Ok(());
            }
            if condition(to) == Condition::Broken {
                return Err(Broken::To);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// Carries bytes until the end of stream.
async fn pump(
    Sockets { from, to }: Sockets<'_>,
    mut carrier: impl Carrier,
    told: impl Fn(usize),
) -> Result<(), Broken> {
    let reading = from.watched().map_err(|_| Broken::From)?;
    let writing = to.watched().map_err(|_| Broken::To)?;
    loop {
        let filled = reading.async_io(Interest::READABLE, |from| carrier.fill(from.as_fd())).await;
        if filled.map_err(|_| Broken::From)?.bytes == 0 {
            return Ok(());
        }
        while carrier.held() > 0 {
            let drained =
                writing.async_io(Interest::WRITABLE, |to| carrier.drain(to.as_fd())).await;
            told(drained.map_err(|_| Broken::To)?);
        }
        carrier.rest();
    }
}

/// `write_seq` seen from outside: what was acknowledged and what was not. TCP_INFO first: bytes that
/// are acknowledged in between are then missing, never counted twice.
fn handed(to: impl AsFd) -> io::Result<u64> {
    let acked = sys::tcp_info(&to)?.bytes_acked;
    Ok(acked + sys::unacknowledged(&to)? as u64)
}

fn agreed(mut look: impl FnMut() -> io::Result<u64>) -> io::Result<u64> {
    let mut last = look()?;
    for _ in 0..100 {
        let now = look()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    Err(io::ErrorKind::TimedOut.into())
}

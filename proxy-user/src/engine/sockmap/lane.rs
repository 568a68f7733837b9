//! One direction of a flow in the kernel: its account, and when it has ended.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use snisplit_common::abi::{DirectionEntry, DirectionState};
use tokio::io::Interest;
use tokio::time::sleep;

use super::super::Side;
use super::super::relay::Carrier;
use super::super::splice::Splice;
use super::quiet::{Condition, Sockets, condition};
use super::stock::{handed, hold, steady_handed, steady_read, unbound};
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

impl Lane {
    /// Takes stock of two sockets that nobody reads or writes meanwhile.
    pub(super) fn open(side: Side, from: &impl AsFd, to: &impl AsFd) -> Result<Self, KernelError> {
        let cookie = kernel::cookie(from)?;
        let handed = steady_handed(to)?;
        let read = steady_read(from)?;
        Ok(Self { side, cookie, handed, read })
    }

    /// Whether nothing was taken from the receiver since it was taken stock of: nobody else does but the
    /// program. FIONREAD does not say, for a socket of the map tells of other bytes (`tcp_bpf_ioctl`).
    pub(super) fn is_untouched(&self, verdict: &Verdict) -> bool {
        self.flow(verdict).is_ok_and(|flow| flow.state == DirectionState::Pending)
    }

    /// The program's account; a poisoned one is a broken receiver.
    pub(super) fn flow(&self, verdict: &Verdict) -> Result<DirectionEntry, Broken> {
        let flow = verdict.flow(self.cookie);
        flow.filter(|flow| flow.state != DirectionState::Poisoned).ok_or(Broken::From)
    }

    /// Whether the sender's TCP has everything so far, the kernel's backlog included.
    fn is_handed(&self, to: &TcpStream, sent: u64) -> Result<bool, Broken> {
        let handed = handed(to).map_err(|_| Broken::To)?;
        // Fewer than at first: an acknowledgement came between the two looks.
        Ok(handed.saturating_sub(self.handed) >= sent)
    }

    /// Which side a broken socket of this direction is.
    pub(super) const fn broken(&self, which: Broken) -> Side {
        match (which, self.side) {
            (Broken::From, side) => side,
            (Broken::To, Side::Client) => Side::Backend,
            (Broken::To, Side::Backend) => Side::Client,
        }
    }

    /// Whether the receiver's end has come and every byte before it has gone through the program.
    pub(super) fn has_ended(&self, verdict: &Verdict, from: &TcpStream) -> Result<bool, Broken> {
        // The FIN counts as a byte, and may be known before the bytes in front of it.
        let received = sys::tcp_info(from).map_err(|_| Broken::From)?.bytes_received;
        Ok(self.flow(verdict)?.redirected_bytes + 1 == received - self.read)
    }

    /// Whether every byte before the receiver's end is with the sender's TCP.
    pub(super) fn is_drained(
        &self,
        verdict: &Verdict,
        sockets: Sockets<'_>,
    ) -> Result<bool, Broken> {
        Ok(self.has_ended(verdict, sockets.from)?
            && self.is_handed(sockets.to, self.flow(verdict)?.redirected_bytes)?)
    }

    /// Has the program redirect nothing more; whether bytes were left to us.
    ///
    /// Out of the program's sight the receiver is a socket like any other. Where bytes were left to us
    /// already, it stays: only under the program does reading them move the socket on
    /// (`tcp_bpf_recvmsg_parser` keeps `copied_seq`, `tcp_bpf_recvmsg` does not), and splice(2) does not
    /// see them. Once taken out, a half-closed socket could not go back (sock_map_sk_state_allowed).
    fn give_up(&self, verdict: &Verdict, from: &TcpStream) -> Result<bool, Broken> {
        hold(from).map_err(|_| Broken::From)?;
        let stays = self.flow(verdict)?.passed_bytes > 0;
        if !stays {
            verdict.remove_source(self.cookie);
        }
        let DirectionEntry {
            passed_bytes: passed, bulk_threshold: bulk, window_bytes: paced, ..
        } = self.flow(verdict)?;
        if bulk > 0 && paced > bulk {
            unbound(from);
        }
        if passed > 0 && !stays {
            verdict.add_source(self.cookie, from).map_err(|_| Broken::From)?;
        }
        sys::set_receive_low_water(from, 1).map_err(|_| Broken::From)?;
        Ok(passed > 0)
    }

    /// Carries the rest of a direction that the program has given up, to its end, behind what the
    /// kernel took for it.
    pub(super) async fn leave(
        &self,
        verdict: &Verdict,
        sockets: Sockets<'_>,
        splice: &Splice,
        relayed: &AtomicU64,
    ) -> Result<(), Broken> {
        let is_left_bytes = self.give_up(verdict, sockets.from)?;
        self.wait_handed(verdict, sockets.to).await?;
        let mut pause = PAUSE.0;
        loop {
            match is_left_bytes {
                true => pump(sockets, splice.spare(), relayed).await?,
                false => pump(sockets, splice.carrier(), relayed).await?,
            }
            let received = sys::tcp_info(sockets.from).map_err(|_| Broken::From)?.bytes_received;
            let redirected = self.flow(verdict)?.redirected_bytes;
            if self.read + redirected + relayed.load(Ordering::Relaxed) + 1 == received {
                return Ok(());
            }
            // What was left to us may still be on its way to where recv(2) looks (sk_psock_backlog), and
            // behind a FIN recv(2) does not wait for it. Anything else that is missing is lost.
            if !is_left_bytes {
                return Err(Broken::From);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
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
            if self.is_handed(to, self.flow(verdict)?.redirected_bytes)? {
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
    relayed: &AtomicU64,
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
            relayed.fetch_add(drained.map_err(|_| Broken::To)? as u64, Ordering::Relaxed);
        }
        carrier.rest();
    }
}

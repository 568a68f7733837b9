//! One direction of a flow in the kernel: its account, and when it has ended.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use snisplit_common::abi::sockmap::{DirectionEntry, DirectionState};
use tokio::io::Interest;
use tokio::time::sleep;

use super::super::Peer;
use super::super::splice::SpliceEngine;
use super::super::transfer::Transfer;
use super::accounting::{
    bytes_read_exact, bytes_written, bytes_written_exact, raise_rcvlowat, uncap_rcvbuf,
};
use super::lazy_socket::{DirectionSockets, SocketState, socket_state};
use crate::bpf::{self, BpfError, SockmapProgram};
use crate::sys;

/// Pauses while the kernel empties a backlog: it has no event for that.
pub(super) const POLL_BACKOFF: (Duration, Duration) =
    (Duration::from_micros(200), Duration::from_millis(20));

/// A direction, known by the socket that receives.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowDirection {
    pub(super) peer: Peer,
    pub(super) cookie: u64,
    /// Bytes handed to the sender's TCP before the flow began.
    initial_written: u64,
    /// Bytes of the receiver that were read before the flow began.
    initial_read: u64,
}

/// The socket that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirectionError {
    From,
    To,
}

impl FlowDirection {
    /// Takes stock of two sockets that nobody reads or writes meanwhile.
    pub(super) fn new(peer: Peer, from: &impl AsFd, to: &impl AsFd) -> Result<Self, BpfError> {
        let cookie = bpf::cookie(from)?;
        let initial_written = bytes_written_exact(to)?;
        let initial_read = bytes_read_exact(from)?;
        Ok(Self { peer, cookie, initial_written, initial_read })
    }

    /// Whether nothing was taken from the receiver since it was taken stock of: nobody else does but the
    /// program. FIONREAD does not say, for a socket of the map tells of other bytes (`tcp_bpf_ioctl`).
    pub(super) fn is_pristine(&self, program: &SockmapProgram) -> bool {
        self.entry(program).is_ok_and(|entry| entry.state == DirectionState::Pending)
    }

    /// The program's account; a poisoned one is a broken receiver.
    pub(super) fn entry(&self, program: &SockmapProgram) -> Result<DirectionEntry, DirectionError> {
        let entry = program.flow_entry(self.cookie);
        entry.filter(|entry| entry.state != DirectionState::Poisoned).ok_or(DirectionError::From)
    }

    /// Whether the sender's TCP has everything so far, the kernel's backlog included.
    fn is_delivered(&self, to: &TcpStream, sent: u64) -> Result<bool, DirectionError> {
        let written = bytes_written(to).map_err(|_| DirectionError::To)?;
        // Fewer than at first: an acknowledgement came between the two looks.
        Ok(written.saturating_sub(self.initial_written) >= sent)
    }

    /// Which side a broken socket of this direction is.
    pub(super) const fn failed_peer(&self, error: DirectionError) -> Peer {
        match (error, self.peer) {
            (DirectionError::From, peer) => peer,
            (DirectionError::To, Peer::Client) => Peer::Backend,
            (DirectionError::To, Peer::Backend) => Peer::Client,
        }
    }

    /// Whether the receiver's end has come and every byte before it has gone through the program.
    pub(super) fn has_ended(
        &self,
        program: &SockmapProgram,
        from: &TcpStream,
    ) -> Result<bool, DirectionError> {
        // The FIN counts as a byte, and may be known before the bytes in front of it.
        let received = sys::tcp_info(from).map_err(|_| DirectionError::From)?.bytes_received;
        Ok(self.entry(program)?.redirected_bytes + 1 == received - self.initial_read)
    }

    /// Whether every byte before the receiver's end is with the sender's TCP.
    pub(super) fn is_drained(
        &self,
        program: &SockmapProgram,
        sockets: DirectionSockets<'_>,
    ) -> Result<bool, DirectionError> {
        Ok(self.has_ended(program, sockets.from)?
            && self.is_delivered(sockets.to, self.entry(program)?.redirected_bytes)?)
    }

    /// Has the program redirect nothing more; whether bytes were left to us.
    ///
    /// Out of the program's sight the receiver is a socket like any other. Where bytes were left to us
    /// already, it stays: only under the program does reading them move the socket on
    /// (`tcp_bpf_recvmsg_parser` keeps `copied_seq`, `tcp_bpf_recvmsg` does not), and splice(2) does not
    /// see them. Once taken out, a half-closed socket could not go back (sock_map_sk_state_allowed).
    fn detach(&self, program: &SockmapProgram, from: &TcpStream) -> Result<bool, DirectionError> {
        raise_rcvlowat(from).map_err(|_| DirectionError::From)?;
        let stays_attached = self.entry(program)?.passed_bytes > 0;
        if !stays_attached {
            program.remove_source(self.cookie);
        }
        let DirectionEntry {
            passed_bytes: passed, bulk_threshold: bulk, window_bytes: paced, ..
        } = self.entry(program)?;
        if bulk > 0 && paced > bulk {
            uncap_rcvbuf(from);
        }
        if passed > 0 && !stays_attached {
            program.add_source(self.cookie, from).map_err(|_| DirectionError::From)?;
        }
        sys::set_rcvlowat(from, 1).map_err(|_| DirectionError::From)?;
        Ok(passed > 0)
    }

    /// Carries the rest of a direction that the program has given up, to its end, behind what the
    /// kernel took for it.
    pub(super) async fn relay_in_user_space(
        &self,
        program: &SockmapProgram,
        sockets: DirectionSockets<'_>,
        splice: &SpliceEngine,
        relayed: &AtomicU64,
    ) -> Result<(), DirectionError> {
        let has_passed_bytes = self.detach(program, sockets.from)?;
        self.wait_delivered(program, sockets.to).await?;
        let mut pause = POLL_BACKOFF.0;
        loop {
            match has_passed_bytes {
                true => relay_until_eof(sockets, splice.copy_fallback(), relayed).await?,
                false => relay_until_eof(sockets, splice.transfer(), relayed).await?,
            }
            let received =
                sys::tcp_info(sockets.from).map_err(|_| DirectionError::From)?.bytes_received;
            let redirected = self.entry(program)?.redirected_bytes;
            if self.initial_read + redirected + relayed.load(Ordering::Relaxed) + 1 == received {
                return Ok(());
            }
            // What was left to us may still be on its way to where recv(2) looks (sk_psock_backlog), and
            // behind a FIN recv(2) does not wait for it. Anything else that is missing is lost.
            if !has_passed_bytes {
                return Err(DirectionError::From);
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_BACKOFF.1);
        }
    }

    /// Waits until the sender's TCP has what the kernel took for it.
    pub(super) async fn wait_delivered(
        &self,
        program: &SockmapProgram,
        to: &TcpStream,
    ) -> Result<(), DirectionError> {
        let mut pause = POLL_BACKOFF.0;
        loop {
            if self.is_delivered(to, self.entry(program)?.redirected_bytes)? {
                return Ok(());
            }
            if socket_state(to) == SocketState::Failed {
                return Err(DirectionError::To);
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_BACKOFF.1);
        }
    }
}

/// Carries bytes until the end of stream.
async fn relay_until_eof(
    DirectionSockets { from, to }: DirectionSockets<'_>,
    mut transfer: impl Transfer,
    relayed: &AtomicU64,
) -> Result<(), DirectionError> {
    let reading = from.register().map_err(|_| DirectionError::From)?;
    let writing = to.register().map_err(|_| DirectionError::To)?;
    loop {
        let outcome =
            reading.async_io(Interest::READABLE, |from| transfer.read_from(from.as_fd())).await;
        if outcome.map_err(|_| DirectionError::From)?.bytes == 0 {
            return Ok(());
        }
        while transfer.buffered() > 0 {
            let written =
                writing.async_io(Interest::WRITABLE, |to| transfer.write_to(to.as_fd())).await;
            relayed.fetch_add(written.map_err(|_| DirectionError::To)? as u64, Ordering::Relaxed);
        }
        transfer.release();
    }
}

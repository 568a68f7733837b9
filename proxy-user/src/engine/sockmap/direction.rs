//! One direction of a flow that the kernel forwards: its byte counts, its end, and its detachment.
//!
//! A direction has a receiving socket (`from`) and a sending socket (`to`).

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, io};

use snisplit_common::abi::sockmap::{DirectionEntry, DirectionState};
use tokio::io::Interest;
use tokio::time::sleep;

use super::lazy_socket::{LazySocket, SocketState, socket_state};
use super::receive_buffer::{raise_rcvlowat, uncap_rcvbuf};
use crate::bpf::{self, BpfError, SockmapProgram};
use crate::engine::byte_counts::{bytes_read_exact, bytes_written, bytes_written_exact};
use crate::engine::splice::SpliceEngine;
use crate::engine::transfer::Transfer;
use crate::engine::{LocalErrorStage, Peer, is_local_error};
use crate::sys;

/// Pauses between polls of a condition that the kernel has no event for. Each pause is twice as long as
/// the one before, up to a limit.
pub(super) struct PollBackoff {
    next: Duration,
}

impl PollBackoff {
    const FIRST: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_millis(20);

    pub(super) const fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LONGEST);
    }
}

/// Identity of a direction, and the byte counts of its sockets when the engine received them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowDirection {
    /// The peer that sends the bytes of this direction.
    pub(super) peer: Peer,
    /// Cookie of the receiving socket, which is the key of the flow entry.
    pub(super) cookie: u64,
    /// Bytes written to the sending socket before.
    initial_written: u64,
    /// Bytes read from the receiving socket before.
    initial_read: u64,
}

/// The two sockets of a direction.
#[derive(Clone, Copy)]
pub(super) struct DirectionSockets<'s> {
    pub(super) from: &'s LazySocket,
    pub(super) to: &'s LazySocket,
}

/// Why a direction ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirectionError {
    /// The receiving socket failed.
    From,
    /// The sending socket failed.
    To,
    /// This host could not carry the direction on.
    Local(LocalErrorStage),
}

/// Why a flow ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowError {
    /// The connection to this peer failed.
    Peer(Peer),
    /// This host could not carry the flow on.
    Local(LocalErrorStage),
}

/// Maps any error to a local error of this stage, and logs it.
pub(super) fn local<E: fmt::Display>(stage: LocalErrorStage) -> impl FnOnce(E) -> DirectionError {
    move |error| {
        stage.log(&error);
        DirectionError::Local(stage)
    }
}

impl DirectionError {
    fn from_read(error: &io::Error) -> Self {
        Self::from_io(Self::From, LocalErrorStage::Read, error)
    }

    fn from_write(error: &io::Error) -> Self {
        Self::from_io(Self::To, LocalErrorStage::Write, error)
    }

    fn from_io(failed_socket: Self, stage: LocalErrorStage, error: &io::Error) -> Self {
        if is_local_error(error) { local(stage)(error) } else { failed_socket }
    }
}

impl FlowDirection {
    /// Reads the byte counts of both sockets. Nobody may read or write them meanwhile.
    pub(super) fn new(peer: Peer, from: &impl AsFd, to: &impl AsFd) -> Result<Self, BpfError> {
        let cookie = bpf::cookie(from)?;
        let initial_written = bytes_written_exact(to)?;
        let initial_read = bytes_read_exact(from)?;
        Ok(Self { peer, cookie, initial_written, initial_read })
    }

    /// Whether the program has seen no byte of the direction.
    ///
    /// `FIONREAD` cannot answer this: on a socket of the map it counts other bytes (`tcp_bpf_ioctl`).
    pub(super) fn is_pristine(&self, program: &SockmapProgram) -> bool {
        self.entry(program).is_ok_and(|entry| entry.state == DirectionState::Pending)
    }

    /// Reads the flow entry. Fails if it is missing, or if the program poisoned it.
    pub(super) fn entry(&self, program: &SockmapProgram) -> Result<DirectionEntry, DirectionError> {
        let entry = program.flow_entry(self.cookie);
        entry
            .filter(|entry| entry.state != DirectionState::Poisoned)
            .ok_or(DirectionError::Local(LocalErrorStage::FlowEntry))
    }

    /// Whether the sending socket has all redirected bytes, so that the kernel's backlog is empty.
    fn is_delivered(&self, to: &TcpStream, redirected: u64) -> Result<bool, DirectionError> {
        let written = bytes_written(to).map_err(local(LocalErrorStage::SocketState))?;
        // `bytes_written` may be too low by what was acknowledged meanwhile.
        Ok(written.saturating_sub(self.initial_written) >= redirected)
    }

    /// Maps an error of this direction to an error of the flow.
    pub(super) const fn flow_error(&self, error: DirectionError) -> FlowError {
        match (error, self.peer) {
            (DirectionError::From, peer) => FlowError::Peer(peer),
            (DirectionError::To, Peer::Client) => FlowError::Peer(Peer::Backend),
            (DirectionError::To, Peer::Backend) => FlowError::Peer(Peer::Client),
            (DirectionError::Local(stage), _) => FlowError::Local(stage),
        }
    }

    /// Whether a FIN was received and the program has redirected every byte before it.
    pub(super) fn has_ended(
        &self,
        program: &SockmapProgram,
        from: &TcpStream,
    ) -> Result<bool, DirectionError> {
        // The FIN counts as a byte. The socket may report it before the program has all bytes.
        let info = sys::tcp_info(from).map_err(local(LocalErrorStage::SocketState))?;
        let received = info.bytes_received;
        Ok(self.entry(program)?.redirected_bytes + 1 == received - self.initial_read)
    }

    /// Whether a FIN was received and the sending socket has every byte before it.
    pub(super) fn is_drained(
        &self,
        program: &SockmapProgram,
        sockets: DirectionSockets<'_>,
    ) -> Result<bool, DirectionError> {
        Ok(self.has_ended(program, sockets.from)?
            && self.is_delivered(sockets.to, self.entry(program)?.redirected_bytes)?)
    }

    /// Stops the redirection, and returns whether the program has passed bytes to user space.
    ///
    /// The receiving socket leaves the source map, and is a plain socket then. It stays in the map if the
    /// program has passed bytes. Only there does a read of those bytes advance `copied_seq`
    /// (`tcp_bpf_recvmsg_parser` does it, `tcp_bpf_recvmsg` does not), and splice(2) does not see them.
    ///
    /// A half-closed socket that has left the map cannot return (`sock_map_sk_state_allowed`).
    fn detach(&self, program: &SockmapProgram, from: &TcpStream) -> Result<bool, DirectionError> {
        raise_rcvlowat(from).map_err(local(LocalErrorStage::SocketOption))?;
        let stays_attached = self.entry(program)?.passed_bytes > 0;
        if !stays_attached {
            program.remove_source(self.cookie);
        }
        let DirectionEntry { passed_bytes, bulk_threshold, window_bytes, .. } =
            self.entry(program)?;
        if bulk_threshold > 0 && window_bytes > bulk_threshold {
            uncap_rcvbuf(from);
        }
        if passed_bytes > 0 && !stays_attached {
            program.add_source(self.cookie, from).map_err(local(LocalErrorStage::SockmapUpdate))?;
        }
        sys::set_rcvlowat(from, 1).map_err(local(LocalErrorStage::SocketOption))?;
        Ok(passed_bytes > 0)
    }

    /// Detaches the direction and relays the rest of its bytes, after those that the kernel redirected.
    pub(super) async fn relay_in_user_space(
        &self,
        program: &SockmapProgram,
        sockets: DirectionSockets<'_>,
        splice: &SpliceEngine,
        relayed: &AtomicU64,
    ) -> Result<(), DirectionError> {
        let has_passed_bytes = self.detach(program, sockets.from)?;
        self.wait_delivered(program, sockets.to).await?;
        let mut backoff = PollBackoff::new();
        loop {
            match has_passed_bytes {
                true => relay_until_eof(sockets, splice.copy_fallback(), relayed).await?,
                false => relay_until_eof(sockets, splice.transfer(), relayed).await?,
            }
            let info = sys::tcp_info(sockets.from).map_err(local(LocalErrorStage::SocketState))?;
            let redirected = self.entry(program)?.redirected_bytes;
            if self.initial_read + redirected + relayed.load(Ordering::Relaxed) + 1
                == info.bytes_received
            {
                return Ok(());
            }
            // Passed bytes may still be on their way to the queue that recv(2) reads
            // (`sk_psock_backlog`), and behind a FIN recv(2) does not wait for them. Other missing bytes
            // are lost.
            if !has_passed_bytes {
                return Err(DirectionError::Local(LocalErrorStage::MissingBytes));
            }
            backoff.wait().await;
        }
    }

    /// Waits until the sending socket has all redirected bytes.
    pub(super) async fn wait_delivered(
        &self,
        program: &SockmapProgram,
        to: &TcpStream,
    ) -> Result<(), DirectionError> {
        let mut backoff = PollBackoff::new();
        loop {
            if self.is_delivered(to, self.entry(program)?.redirected_bytes)? {
                return Ok(());
            }
            let state = socket_state(to).map_err(local(LocalErrorStage::SocketState))?;
            if state == SocketState::Failed {
                return Err(DirectionError::To);
            }
            backoff.wait().await;
        }
    }
}

/// Relays bytes until the end of stream. Counts them in `relayed`.
async fn relay_until_eof(
    DirectionSockets { from, to }: DirectionSockets<'_>,
    mut transfer: impl Transfer,
    relayed: &AtomicU64,
) -> Result<(), DirectionError> {
    let reading = from.register().map_err(local(LocalErrorStage::Register))?;
    let writing = to.register().map_err(local(LocalErrorStage::Register))?;
    loop {
        let outcome =
            reading.async_io(Interest::READABLE, |from| transfer.read_from(from.as_fd())).await;
        if outcome.map_err(|error| DirectionError::from_read(&error))?.bytes == 0 {
            return Ok(());
        }
        while transfer.buffered() > 0 {
            let written =
                writing.async_io(Interest::WRITABLE, |to| transfer.write_to(to.as_fd())).await;
            let written = written.map_err(|error| DirectionError::from_write(&error))?;
            relayed.fetch_add(written as u64, Ordering::Relaxed);
        }
        transfer.release();
    }
}

//! A flow that the kernel forwards. User space waits for its end, and ends it without loss.
//!
//! On shutdown(2), on close(2) and on removal from the map the kernel silently drops the backlog of
//! redirected bytes. So each of these waits until the backlog is empty.

use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snisplit_common::abi::sockmap::DirectionState;
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::watch;
use tracing::debug;

use super::direction::{
    DirectionError, DirectionSockets, FlowDirection, FlowError, PollBackoff, local,
};
use super::hangup_monitor::HangupMonitor;
use super::lazy_socket::{LazySocket, SocketState, failed_peer, socket_state};
use crate::bpf::SockmapProgram;
use crate::engine::splice::SpliceEngine;
use crate::engine::{
    FlowCounters, FlowEnd, LocalErrorStage, Peer, set_graceful_close, wait_send_queue_empty,
};
use crate::sys;

/// A socket pair in the maps, whose sockets still hold arriving bytes back (`raise_rcvlowat`).
pub(super) struct PreparedFlow {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    pub(super) counters: Arc<FlowCounters>,
    pub(super) entries: FlowEntryGuard,
}

/// The directions up and down in the maps. Dropping it removes their sockets and flow entries.
pub(super) struct FlowEntryGuard {
    program: Arc<SockmapProgram>,
    pub(super) directions: [FlowDirection; 2],
    /// Bytes that user space relayed after a direction detached.
    relayed: [AtomicU64; 2],
}

impl FlowEntryGuard {
    pub(super) fn new(program: Arc<SockmapProgram>, directions: [FlowDirection; 2]) -> Self {
        Self { program, directions, relayed: Default::default() }
    }

    /// Returns the bytes delivered up and down.
    fn bytes_delivered(&self) -> (u64, u64) {
        let direction_bytes = |index: usize| {
            let entry = self.program.flow_entry(self.directions[index].cookie);
            let relayed = self.relayed[index].load(Ordering::Relaxed);
            entry.map_or(0, |entry| entry.redirected_bytes) + relayed
        };
        (direction_bytes(0), direction_bytes(1))
    }
}

impl Drop for FlowEntryGuard {
    fn drop(&mut self) {
        for direction in &self.directions {
            self.program.remove_socket(direction.cookie);
            self.program.remove_flow_entry(direction.cookie);
        }
    }
}

impl PreparedFlow {
    /// Carries both directions to their end.
    pub(super) async fn run(self, monitor: &HangupMonitor, splice: &SpliceEngine) -> FlowEnd {
        let Self { client, backend, counters, entries } = self;
        let entries = Arc::new(entries);
        let counted_entries = Arc::clone(&entries);
        let _counter_guard =
            counters.attach_kernel_counters(move || counted_entries.bytes_delivered());
        let sockets = LazySocket::new(client).and_then(|c| Ok((c, LazySocket::new(backend)?)));
        let (client, backend) = match sockets {
            Ok(sockets) => sockets,
            Err(error) => return FlowEnd::local_error(LocalErrorStage::Register, &error),
        };
        let cookies = entries.directions.map(|direction| direction.cookie);
        let registration = match monitor.register([&client, &backend], cookies) {
            Ok(registration) => registration,
            Err(error) => return FlowEnd::local_error(LocalErrorStage::Register, &error),
        };
        // Shows the program the bytes that arrived before (`tcp_set_rcvlowat`).
        let lowered = [&backend, &client].into_iter().try_for_each(|s| sys::set_rcvlowat(s, 1));
        if let Err(error) = lowered {
            return FlowEnd::local_error(LocalErrorStage::SocketOption, &error);
        }
        let flow = RunningFlow { splice, client: &client, backend: &backend, entries: &entries };
        match flow.run_both(&registration.wake_rx).await {
            Ok(()) => {
                [&client, &backend].into_iter().for_each(set_graceful_close);
                FlowEnd::Closed
            }
            Err(error) => flow.reset(error).await,
        }
    }
}

/// A flow whose bytes the kernel redirects.
struct RunningFlow<'f> {
    splice: &'f SpliceEngine,
    client: &'f LazySocket,
    backend: &'f LazySocket,
    entries: &'f FlowEntryGuard,
}

impl<'f> RunningFlow<'f> {
    fn sockets(&self, direction: FlowDirection) -> DirectionSockets<'f> {
        match direction.peer {
            Peer::Client => DirectionSockets { from: self.client, to: self.backend },
            Peer::Backend => DirectionSockets { from: self.backend, to: self.client },
        }
    }

    /// Waits for the end of both directions, and passes each on.
    async fn run_both(&self, wake_rx: &watch::Receiver<()>) -> Result<(), FlowError> {
        let [up, down] = self.entries.directions;
        let (mut up_ends, mut down_ends) = (
            pin!(self.run_direction(0, wake_rx.clone())),
            pin!(self.run_direction(1, wake_rx.clone())),
        );
        let (first, direction, other_direction, other_ends) = select! {
            result = &mut up_ends => (result, up, down, down_ends),
            result = &mut down_ends => (result, down, up, up_ends),
        };
        match first {
            Ok(()) => other_ends.await.map_err(|error| other_direction.flow_error(error)),
            Err(DirectionError::To) => {
                // The failed peer may have sent bytes before, which the other peer still gets.
                let _also_fails = other_ends.await;
                Err(direction.flow_error(DirectionError::To))
            }
            Err(error) => Err(direction.flow_error(error)),
        }
    }

    /// Waits for the end of one direction, and passes it on. Relays the direction once it detaches.
    async fn run_direction(
        &self,
        index: usize,
        mut wake_rx: watch::Receiver<()>,
    ) -> Result<(), DirectionError> {
        let direction = self.entries.directions[index];
        let (program, sockets) = (&self.entries.program, self.sockets(direction));
        let mut backoff = PollBackoff::new();
        loop {
            wake_rx.mark_unchanged();
            let to_state = socket_state(sockets.to).map_err(local(LocalErrorStage::SocketState))?;
            if to_state == SocketState::Failed {
                return Err(DirectionError::To);
            }
            // Bytes that arrived before an error of the receiving socket are still delivered.
            match direction.entry(program)?.state {
                DirectionState::Overflowing | DirectionState::Detaching => {
                    Box::pin(self.relay_in_user_space(index)).await?;
                    break;
                }
                DirectionState::Pending
                | DirectionState::Redirecting
                | DirectionState::Poisoned => {}
            }
            let from_state =
                socket_state(sockets.from).map_err(local(LocalErrorStage::SocketState))?;
            match from_state {
                SocketState::Open => {
                    _ = wake_rx.changed().await;
                    continue;
                }
                // A reset behind a FIN takes no byte back, as with read(2) (`SOCK_DONE`).
                SocketState::Failed if !direction.has_ended(program, sockets.from)? => {
                    return Err(DirectionError::From);
                }
                SocketState::Failed | SocketState::PeerClosed => {}
            }
            if direction.is_drained(program, sockets)? {
                break;
            }
            backoff.wait().await;
        }
        let _reset_meanwhile = sockets.to.shutdown(Shutdown::Write);
        Ok(())
    }

    async fn relay_in_user_space(&self, index: usize) -> Result<(), DirectionError> {
        let FlowEntryGuard { program, directions, relayed } = self.entries;
        let sockets = self.sockets(directions[index]);
        directions[index].relay_in_user_space(program, sockets, self.splice, &relayed[index]).await
    }

    /// Waits until the remaining peer has what the kernel redirected to it. Dropping the sockets then
    /// resets both peers.
    async fn reset(&self, error: FlowError) -> FlowEnd {
        let failed = match (error, failed_peer(self.client, self.backend)) {
            (FlowError::Peer(peer), _) | (FlowError::Local(_), Some(peer)) => peer,
            (FlowError::Local(stage), None) => return FlowEnd::LocalError(stage),
        };
        let (index, other) = match failed {
            Peer::Client => (0, self.backend),
            Peer::Backend => (1, self.client),
        };
        let direction = self.entries.directions[index];
        let socket_errors = [self.client, self.backend].map(|socket| socket.take_error());
        let socket_states = self
            .entries
            .directions
            .map(|direction| self.entries.program.flow_entry(direction.cookie));
        debug!(direction_error = ?failed, ?socket_errors, ?socket_states, "flow reset");
        if direction.wait_delivered(&self.entries.program, other).await.is_ok() {
            wait_send_queue_empty(other).await;
        }
        FlowEnd::reset_by(failed)
    }
}

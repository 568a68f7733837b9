//! A flow that the kernel carries: user space waits for its end, and sees to it that nothing is lost
//! there.
//!
//! The kernel drops a backlog without a word on `shutdown`, `close` and removal from the map, so each
//! of them waits until it is empty.

use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snisplit_common::abi::sockmap::DirectionState;
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::super::splice::SpliceEngine;
use super::super::{FlowCounters, FlowEnd, Peer, set_graceful_close, wait_send_queue_empty};
use super::SockmapEngine;
use super::direction::{DirectionError, FlowDirection, POLL_BACKOFF};
use super::lazy_socket::{DirectionSockets, LazySocket, SocketState, socket_state};
use crate::bpf::SockmapProgram;
use crate::sys;

/// A pair in the maps, before the kick for the bytes that wait in it.
pub(super) struct PreparedFlow {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    pub(super) counters: Arc<FlowCounters>,
    pub(super) entries: FlowEntryGuard,
}

/// Both directions, up and down; dropping it takes them out of the program's sight.
pub(super) struct FlowEntryGuard {
    program: Arc<SockmapProgram>,
    pub(super) directions: [FlowDirection; 2],
    /// Bytes that user space carried after the kernel had left.
    relayed: [AtomicU64; 2],
}

impl FlowEntryGuard {
    pub(super) fn new(program: Arc<SockmapProgram>, directions: [FlowDirection; 2]) -> Self {
        Self { program, directions, relayed: Default::default() }
    }

    /// Bytes delivered, up and down.
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
    pub(super) async fn run(self, engine: &SockmapEngine) -> FlowEnd {
        let Self { client, backend, counters, entries } = self;
        let entries = Arc::new(entries);
        let counted_entries = Arc::clone(&entries);
        let _counter_guard =
            counters.attach_kernel_counters(move || counted_entries.bytes_delivered());
        let (Ok(client), Ok(backend)) = (LazySocket::new(client), LazySocket::new(backend)) else {
            return FlowEnd::ClientReset;
        };
        let cookies = entries.directions.map(|direction| direction.cookie);
        let Ok(registration) = engine.hangup_monitor.register([&client, &backend], cookies) else {
            return FlowEnd::ClientReset;
        };
        // Bytes that came before the sockets were sources wait for this (tcp_set_rcvlowat).
        if [&backend, &client].into_iter().any(|s| sys::set_rcvlowat(s, 1).is_err()) {
            return FlowEnd::ClientReset;
        }
        let splice = &engine.splice;
        let flow = RunningFlow { splice, client: &client, backend: &backend, entries: &entries };
        match flow.run_both(&registration.wake_rx).await {
            Ok(()) => {
                [&client, &backend].into_iter().for_each(set_graceful_close);
                FlowEnd::Closed
            }
            Err(side) => flow.reset(side).await,
        }
    }
}

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

    /// Both directions, until both ends have been passed on; `Err` is the side that broke.
    async fn run_both(&self, wake_rx: &watch::Receiver<()>) -> Result<(), Peer> {
        let [up, down] = self.entries.directions;
        let (mut up_ends, mut down_ends) = (
            pin!(self.run_direction(0, wake_rx.clone())),
            pin!(self.run_direction(1, wake_rx.clone())),
        );
        let (first, direction, other_direction, other_ends) = select! {
            ended = &mut up_ends => (ended, up, down, down_ends),
            ended = &mut down_ends => (ended, down, up, up_ends),
        };
        match first {
            Ok(()) => other_ends.await.map_err(|error| other_direction.failed_peer(error)),
            Err(DirectionError::To) => {
                // The dead side may have said something before it died: that still has a reader.
                let _also_broken = other_ends.await;
                Err(direction.failed_peer(DirectionError::To))
            }
            Err(DirectionError::From) => Err(direction.failed_peer(DirectionError::From)),
        }
    }

    /// One direction, until its end has been passed on.
    async fn run_direction(
        &self,
        index: usize,
        mut wake_rx: watch::Receiver<()>,
    ) -> Result<(), DirectionError> {
        let direction = self.entries.directions[index];
        let (program, sockets) = (&self.entries.program, self.sockets(direction));
        let mut pause = POLL_BACKOFF.0;
        loop {
            wake_rx.mark_unchanged();
            if socket_state(sockets.to) == SocketState::Failed {
                return Err(DirectionError::To);
            }
            // What a broken socket said before is still delivered.
            match direction.entry(program)?.state {
                DirectionState::Overflowing | DirectionState::Detaching => {
                    Box::pin(self.relay_in_user_space(index)).await?;
                    break;
                }
                DirectionState::Pending
                | DirectionState::Redirecting
                | DirectionState::Poisoned => {}
            }
            match socket_state(sockets.from) {
                SocketState::Open => {
                    _ = wake_rx.changed().await;
                    continue;
                }
                // A reset behind an end of stream takes nothing of that back (`SOCK_DONE`, as read(2)
                // sees it).
                SocketState::Failed if !direction.has_ended(program, sockets.from)? => {
                    return Err(DirectionError::From);
                }
                SocketState::Failed | SocketState::PeerClosed => {}
            }
            if direction.is_drained(program, sockets)? {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_BACKOFF.1);
        }
        let _reset_meanwhile = sockets.to.shutdown(Shutdown::Write);
        Ok(())
    }

    async fn relay_in_user_space(&self, index: usize) -> Result<(), DirectionError> {
        let FlowEntryGuard { program, directions, relayed } = self.entries;
        let sockets = self.sockets(directions[index]);
        directions[index].relay_in_user_space(program, sockets, self.splice, &relayed[index]).await
    }

    /// The survivor gets what the kernel took for it; then dropping both resets both.
    async fn reset(&self, failed: Peer) -> FlowEnd {
        let (index, other, end) = match failed {
            Peer::Client => (0, self.backend, FlowEnd::ClientReset),
            Peer::Backend => (1, self.client, FlowEnd::BackendReset),
        };
        let direction = self.entries.directions[index];
        let errors = [self.client, self.backend].map(|socket| socket.take_error());
        let entries = self
            .entries
            .directions
            .map(|direction| self.entries.program.flow_entry(direction.cookie));
        debug!(?failed, ?errors, ?entries, "the flow is reset");
        if direction.wait_delivered(&self.entries.program, other).await.is_ok() {
            wait_send_queue_empty(other).await;
        }
        end
    }
}

//! A flow of the packet engine from its hello to its end: before the takeover, and offloaded.

use std::future::pending;
use std::io;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use snisplit_common::abi::packet::{FallbackReason, FlowEntry, FlowState};
use tokio::io::Interest;
use tokio::select;
use tokio::task::yield_now;

use super::flow_monitor::FlowMonitor;
use super::flow_watch::{FlowUpdate, FlowWatch};
use super::ports::PortLease;
use super::reset;
use crate::bpf::packet::PacketPrograms;
use crate::engine::{EngineKind, FlowCounters, FlowEnd, Socket, SocketPair};

/// A flow in the programs' maps. Dropping it removes the flow as `on_drop` says.
pub(super) struct FlowGuard {
    programs: Arc<PacketPrograms>,
    monitor: Arc<FlowMonitor>,
    flow_id: u64,
    watch: Arc<FlowWatch>,
    pub(super) on_drop: OnDrop,
}

/// A flow that the programs carry, and that has no sockets.
pub(crate) struct OffloadedFlow {
    pub(super) guard: FlowGuard,
    pub(super) lease: Option<PortLease>,
    pub(super) counters: Arc<FlowCounters>,
}

/// How a [`FlowGuard`] removes its flow.
pub(super) enum OnDrop {
    /// At once. The flow has sockets.
    Remove,
    /// At once, with a reset to both peers. The flow is offloaded and has not ended.
    ResetPeers,
    /// After TIME-WAIT, in which the programs still translate repeated packets of the flow's end. The
    /// lease of the source port ends at once.
    TimeWait(Option<PortLease>),
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        let Self { programs, monitor, .. } = self;
        monitor.unwatch(self.flow_id);
        match &self.on_drop {
            OnDrop::Remove => _ = programs.remove_flow(self.flow_id),
            OnDrop::ResetPeers => {
                programs.remove_flow(self.flow_id).iter().for_each(reset::send_resets)
            }
            OnDrop::TimeWait(_lease) => monitor.enter_time_wait(self.flow_id),
        }
    }
}

impl FlowGuard {
    /// Registers a flow with the monitor, before the flow is inserted in the maps.
    pub(super) fn new(
        programs: &Arc<PacketPrograms>,
        monitor: &Arc<FlowMonitor>,
        flow_id: u64,
        on_drop: OnDrop,
    ) -> Self {
        let watch = monitor.watch(flow_id);
        let (programs, monitor) = (Arc::clone(programs), Arc::clone(monitor));
        Self { programs, monitor, flow_id, watch, on_drop }
    }

    fn entry(&self) -> Option<FlowEntry> {
        self.programs.flow_entry(self.flow_id)
    }

    /// Waits until the programs have taken the flow over, or fails with the reason why it keeps its
    /// sockets. Cancel-safe.
    pub(super) async fn wait_takeover(&self, pair: &SocketPair) -> Result<(), FallbackReason> {
        let is_notified = select! {
            update = self.watch.wait_for(FlowUpdate::takeover_decided) => match update {
                FlowUpdate::State(state) if state.is_translated() => return Ok(()),
                FlowUpdate::State(_) => true,
                FlowUpdate::PeerDead(_) | FlowUpdate::ResetRequested => false,
            },
            // A socket with bytes or an end must keep the flow.
            () = readable_or_closed(&pair.client) => false,
            () = readable_or_closed(&pair.backend) => false,
        };
        if !is_notified {
            let _removed_meanwhile = self.programs.force_fallback(self.flow_id);
        }
        loop {
            match self.entry() {
                Some(entry) if entry.state.is_translated() => return Ok(()),
                // A program on another CPU is about to decide.
                Some(entry) if entry.state == FlowState::TakingOver => yield_now().await,
                Some(entry) => return Err(entry.fallback_reason),
                None => return Err(FallbackReason::NoSocket),
            }
        }
    }
}

impl OffloadedFlow {
    /// Waits for the end of the flow.
    pub(crate) async fn wait_end(&mut self) -> FlowEnd {
        let Self { guard, lease, counters } = self;
        counters.set_engine(EngineKind::Packet);
        let (programs, flow_id) = (Arc::clone(&guard.programs), guard.flow_id);
        let watch = Arc::clone(&guard.watch);
        let current = move || {
            programs.flow_entry(flow_id).as_ref().map_or((0, 0), FlowEntry::delivered_bytes)
        };
        let _counter_guard =
            counters.attach_kernel_counters(move || watch.delivered().unwrap_or_else(&current));
        let (end, peers_know) = guard.watch.wait_for(FlowUpdate::flow_end).await;
        if peers_know {
            guard.on_drop = OnDrop::TimeWait(lease.take());
        }
        end
    }
}

/// Waits until a socket has bytes, an end of stream or an error. Never returns for an unregistered one.
async fn readable_or_closed(socket: &Socket) {
    if let Socket::UnregisteredTcp(_) = socket {
        return pending().await;
    }
    while socket.ready(Interest::READABLE).await.is_ok() {
        let peek = || Ok(recv(socket, &mut [0; 1], RecvFlags::PEEK)?.0);
        match socket.try_io(Interest::READABLE, peek) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

//! Packet engine: BPF programs on the interfaces translate each packet of a flow, without sockets.
//!
//! When the back end answers the hello, the programs take the flow over. From then on they rewrite
//! addresses, sequence numbers and timestamps of one connection into those of the other one, and the
//! agent closes both sockets silently.
//!
//! A flow that the programs cannot take over keeps its sockets, which are intact until the back end has
//! answered. Another engine carries it. docs/design/packet.md has the reasons, and the traps.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::ioctl_fionread;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::byte_counts::bytes_written_exact;
use super::{DeclineReason, EngineKind, FlowEnd, LocalErrorStage};
use crate::bpf::packet::{AttachPlan, PacketPrograms};
use crate::bpf::{BpfError, cookie};

mod adopt;
mod candidate;
mod clock;
mod flow;
mod flow_monitor;
mod flow_watch;
mod ports;
mod reset;
mod takeover_params;

pub(crate) use adopt::AdoptedFlow;
pub(super) use candidate::TakeoverCandidate;
pub(crate) use flow::OffloadedFlow;
use flow::{FlowGuard, OnDrop};
use flow_monitor::FlowMonitor;
pub(crate) use ports::{PortAllocator, PortLease};
pub(crate) use reset::send_resets;
pub(crate) use takeover_params::{ClientEndpoint, TakeoverParams};

/// Time to wait for a takeover without a registered socket to the back end.
///
/// Nearly every back end answers within it, and the socket is gone then. After it the agent registers
/// the socket and sets its options, which costs system calls. An answer may also come by an interface
/// that has no program, and only the socket gets that one.
const TAKEOVER_GRACE: Duration = Duration::from_millis(100);
/// Sequence numbers that a SYN takes, which the kernel counts as an acknowledged byte.
const SYN_SEQ_LEN: u64 = 1;

/// The packet engine. Clones share the programs.
#[derive(Clone)]
pub(crate) struct PacketEngine {
    programs: Arc<PacketPrograms>,
    monitor: Arc<FlowMonitor>,
    ports: Arc<PortAllocator>,
    _tasks: Arc<Mutex<JoinSet<()>>>,
}

impl PacketEngine {
    /// Loads the programs, attaches them to interfaces, and starts the tasks that wait for their events.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails if a program does not load or attach, or the pinned maps are of another ABI version.
    pub(crate) fn load(
        plan: &AttachPlan,
        ports: PortAllocator,
        pins: Option<&Path>,
    ) -> Result<Self, BpfError> {
        let (programs, events) = PacketPrograms::load(plan, pins)?;
        let programs = Arc::new(programs);
        let (monitor, tasks) = FlowMonitor::start(Arc::clone(&programs), events);
        Ok(Self { programs, monitor, ports: Arc::new(ports), _tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// Lets the XDP programs redirect frames to each interface that has one and can transmit frames
    /// (`ndo_xdp_xmit`).
    ///
    /// # Errors
    /// Fails if the map of interfaces cannot be updated.
    pub(crate) fn enable_xdp_redirect(
        &self,
        supports_xdp_xmit: impl Fn(u32) -> bool,
    ) -> Result<(), BpfError> {
        let mut capable =
            self.programs.xdp_interfaces().iter().filter(|ifindex| supports_xdp_xmit(**ifindex));
        capable.try_for_each(|ifindex| self.programs.enable_xdp_xmit(*ifindex))
    }

    /// Leases a source port for a connection to a back end; `None` if none is free.
    pub(crate) fn lease_port(&self, backend: SocketAddr) -> Option<PortLease> {
        self.ports.lease(backend)
    }

    /// Limits what a SYN from the leased port offers to what the client has, until the clamp is dropped.
    /// Returns `None` if the kernel offers no more anyway.
    ///
    /// # Errors
    /// Fails if the map of clamps is full.
    pub(crate) fn clamp_syn(
        &self,
        lease: &mut PortLease,
        client: &ClientEndpoint,
    ) -> Result<Option<SynClamp>, BpfError> {
        if !client.must_clamp(lease.advertised_mss()) {
            return Ok(None);
        }
        let (backend, port) = (lease.backend(), lease.port());
        self.programs.set_syn_clamp(backend, port, client.syn_clamp_value())?;
        lease.clamped_mss = Some(client.mss());
        Ok(Some(SynClamp { programs: Arc::clone(&self.programs), backend, port }))
    }

    /// The id of a route in the `packet_routes` map.
    pub(super) fn route_id(&self, name: &str) -> u32 {
        self.programs.route_id(name)
    }

    /// Inserts the flow in the maps. Returns its guard and the bytes of the hello that wait.
    fn prepare(&self, flow: &TakeoverCandidate) -> Result<(FlowGuard, usize), DeclineReason> {
        let TakeoverCandidate { pair, params } = flow;
        let (mut entry, info) = takeover_params::flow_entry(&pair.backend, params.as_deref())?;
        let hello = ioctl_fionread(&pair.client).unwrap_or_default();
        if hello == 0 {
            return Err(DeclineReason::NoClientHelloQueued);
        }
        let written = match info.is_send_queue_empty {
            true => info.bytes_acked,
            false => bytes_written_exact(&pair.backend).map_err(|_| DeclineReason::NotConnected)?,
        };
        if written > SYN_SEQ_LEN {
            // Without `TCP_NODELAY` the hello would wait for the acknowledgement of a PROXY header.
            flow.apply_socket_options();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        entry.started_at = now.as_secs();
        entry.route_id = pair.route_id;
        // The programs count in 32 bits, as TCP does.
        entry.expected_acked = (written + hello) as u32;
        let flow_id = cookie(&pair.client).map_err(|_| DeclineReason::NotConnected)?;
        let guard = FlowGuard::new(&self.programs, &self.monitor, flow_id, OnDrop::Remove);
        self.programs.insert_flow(flow_id, &entry).map_err(|_| DeclineReason::MapFull)?;
        Ok((guard, hello as usize))
    }
}

/// Limit on what SYNs from a source port to a back end offer. Dropping it removes the limit.
pub(crate) struct SynClamp {
    programs: Arc<PacketPrograms>,
    backend: SocketAddr,
    port: u16,
}

impl Drop for SynClamp {
    fn drop(&mut self) {
        let _gone_already = self.programs.set_syn_clamp(self.backend, self.port, 0);
    }
}

/// Result of an attempt to take a flow over.
pub(super) enum TakeoverResult {
    /// The programs carry the flow.
    Offloaded(Box<OffloadedFlow>),
    /// The flow ended before its takeover.
    Finished(FlowEnd),
}

/// A flow that keeps its sockets, and why the engine declined it.
pub(super) struct NotTakenOver {
    pub(super) flow: TakeoverCandidate,
    pub(super) reason: DeclineReason,
}

impl PacketEngine {
    /// Forwards the hello and waits until the programs have taken the flow over, or have left it to its
    /// sockets.
    ///
    /// An offloaded flow needs nothing that its connection had, so the caller frees that before it waits
    /// for the end.
    pub(super) async fn carry(
        &self,
        flow: TakeoverCandidate,
    ) -> Result<TakeoverResult, NotTakenOver> {
        let (mut guard, hello) = match self.prepare(&flow) {
            Ok(prepared) => prepared,
            Err(reason) => return Err(NotTakenOver { flow, reason }),
        };
        // Another engine overwrites it if the programs do not take the flow over.
        flow.pair.set_engine(EngineKind::Packet);
        let flow = match flow.forward_hello(hello).await {
            Ok(flow) => flow,
            Err(end) => return Ok(TakeoverResult::Finished(end)),
        };
        let (flow, takeover) = match timeout(TAKEOVER_GRACE, guard.wait_takeover(&flow.pair)).await
        {
            Ok(takeover) => (flow, takeover),
            Err(_) => {
                let flow = match flow.register_backend() {
                    Ok(flow) => flow,
                    Err(error) => {
                        let end = FlowEnd::local_error(LocalErrorStage::Register, &error);
                        return Ok(TakeoverResult::Finished(end));
                    }
                };
                let takeover = guard.wait_takeover(&flow.pair).await;
                (flow, takeover)
            }
        };
        if let Err(reason) = takeover {
            return Err(NotTakenOver { flow, reason: DeclineReason::Fallback(reason) });
        }
        guard.on_drop = OnDrop::ResetPeers;
        let counters = Arc::clone(&flow.pair.counters);
        let lease = flow.close_silently();
        Ok(TakeoverResult::Offloaded(Box::new(OffloadedFlow { guard, lease, counters })))
    }
}

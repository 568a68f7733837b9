//! The packet engine: BPF programs translate the packets of a flow, and no socket of the agent is in the
//! path.
//!
//! When the back end answers the hello, the programs join the two TCP connections: they rewrite
//! addresses, ports, sequence numbers and timestamps of each packet (`proxy-ebpf/src/packet`). The agent
//! closes both sockets without a packet.
//!
//! If the programs cannot take a flow over, its sockets are still complete, and the engine selector
//! continues with another engine.

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

/// Within this time nearly every back end has answered, the programs have told of it, and its socket is no
/// more. One that has not is given what keeps sockets well, and is waited for too, which takes system calls:
/// its back end may be heard by a way that the programs do not see.
const TAKEOVER_GRACE: Duration = Duration::from_millis(100);
/// What a socket counts of its SYN.
const SYN_SEQ_LEN: u64 = 1;

/// Translates packets; cloning shares it.
#[derive(Clone)]
pub(crate) struct PacketEngine {
    programs: Arc<PacketPrograms>,
    monitor: Arc<FlowMonitor>,
    ports: Arc<PortAllocator>,
    _tasks: Arc<Mutex<JoinSet<()>>>,
}

impl PacketEngine {
    /// Loads the programs, attaches them to these interfaces, and begins to listen to them. Needs a
    /// running tokio.
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

    /// Has frames go from driver to driver (XDP), where the program is in them and they take frames.
    pub(crate) fn enable_xdp_redirect(
        &self,
        supports_xdp_xmit: impl Fn(u32) -> bool,
    ) -> Result<(), BpfError> {
        let mut capable =
            self.programs.xdp_interfaces().iter().filter(|ifindex| supports_xdp_xmit(**ifindex));
        capable.try_for_each(|ifindex| self.programs.enable_xdp_xmit(*ifindex))
    }

    /// A port of ours towards a back end, which nothing else uses.
    pub(crate) fn lease_port(&self, backend: SocketAddr) -> Option<PortLease> {
        self.ports.lease(backend)
    }

    /// Has a SYN from this port offer no more than that, until the answer is dropped; `None` if it does
    /// not anyway.
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

    pub(super) fn route_id(&self, name: &str) -> u32 {
        self.programs.route_id(name)
    }

    /// Everything up to the hello, and how many bytes that has. `Err` is why not.
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
            // What goes behind a PROXY header must not wait for its acknowledgement.
            flow.apply_socket_options();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        entry.started_at = now.as_secs();
        entry.route_id = pair.route_id;
        // The program counts in 32 bits, as TCP does.
        entry.expected_acked = (written + hello) as u32;
        let flow_id = cookie(&pair.client).map_err(|_| DeclineReason::NotConnected)?;
        let guard = FlowGuard::new(&self.programs, &self.monitor, flow_id, OnDrop::Remove);
        self.programs.insert_flow(flow_id, &entry).map_err(|_| DeclineReason::MapFull)?;
        Ok((guard, hello as usize))
    }
}

/// A SYN that is held back.
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

/// What the packet engine made of a flow.
pub(super) enum TakeoverResult {
    /// The programs carry it.
    Offloaded(Box<OffloadedFlow>),
    /// It ended before.
    Finished(FlowEnd),
}

/// A flow that keeps its sockets, and why.
pub(super) struct NotTakenOver {
    pub(super) flow: TakeoverCandidate,
    pub(super) reason: DeclineReason,
}

impl PacketEngine {
    /// Takes a pair over, or hands it back as it was. Once the kernel has the flow, nothing that it began with
    /// is needed, so its caller gives that back before it waits for the end.
    pub(super) async fn carry(
        &self,
        flow: TakeoverCandidate,
    ) -> Result<TakeoverResult, NotTakenOver> {
        let (mut guard, hello) = match self.prepare(&flow) {
            Ok(prepared) => prepared,
            Err(reason) => return Err(NotTakenOver { flow, reason }),
        };
        // As long as no other engine has it.
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

//! The kernel forwards packets, and the proxy leaves the path: when the back end answers the hello, the
//! two connections are made one by translating each packet from one's numbers to the other's
//! (`proxy-ebpf/src/packet`), and both sockets are forgotten.
//!
//! A flow that cannot be made one stays with its sockets: until the back end has answered they are
//! whole, and the ladder goes on with them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::ioctl_fionread;
use rustix::net::{SendFlags, send};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::sockmap::handed;
use super::{CarryResult, Declined, EngineKind, FlowCounters, FlowEnd, SocketPair};
use crate::bpf::packet::Hook;
use crate::bpf::packet::{AttachTarget, PacketPrograms};
use crate::bpf::{BpfError, cookie};
use crate::sys;

mod adopt;
mod clock;
mod flow;
mod flow_monitor;
mod flow_watch;
mod ports;
mod reset;
mod takeover_params;

pub(crate) use adopt::AdoptedFlow;
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
        attachments: (&[AttachTarget], Hook),
        ports: PortAllocator,
        pins: Option<&Path>,
    ) -> Result<Self, BpfError> {
        let (programs, events) = PacketPrograms::load(attachments, pins)?;
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
        let (backend, port) = lease.backend_and_port();
        self.programs.set_syn_clamp(backend, port, client.syn_clamp_value())?;
        lease.clamped_mss = Some(client.mss());
        Ok(Some(SynClamp { programs: Arc::clone(&self.programs), backend, port }))
    }

    pub(super) fn route_id(&self, name: &str) -> u32 {
        self.programs.route_id(name)
    }

    /// Everything up to the hello, and how many bytes that has. `Err` is why not.
    fn prepare(&self, pair: &SocketPair) -> Result<(FlowGuard, usize), &'static str> {
        let (mut entry, info) = takeover_params::flow_entry(pair)?;
        let hello = ioctl_fionread(&pair.client).unwrap_or_default();
        if hello == 0 {
            return Err("no_client_hello_queued");
        }
        let written = match info.is_send_queue_empty {
            true => info.bytes_acked,
            false => handed(&pair.backend).map_err(|_| "not_connected")?,
        };
        if written > SYN_SEQ_LEN {
            // What goes behind a PROXY header must not wait for its acknowledgement.
            pair.apply_socket_options();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        entry.started_at = now.as_secs();
        entry.route_id = pair.route_id;
        // The program counts in 32 bits, as TCP does.
        entry.expected_acked = (written + hello) as u32;
        let flow_id = cookie(&pair.client).map_err(|_| "not_connected")?;
        let watch = self.monitor.watch(flow_id);
        let flow = FlowGuard { engine: self.clone(), flow_id, watch, on_drop: OnDrop::Remove };
        self.programs.insert_flow(flow_id, &entry).map_err(|_| "map_full")?;
        Ok((flow, hello as usize))
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

impl PacketEngine {
    /// Takes a pair over, or hands it back as it was. Once the kernel has the flow, nothing that it began with
    /// is needed, so its caller gives that back before it waits for the end.
    pub(super) async fn carry(&self, pair: SocketPair) -> Result<CarryResult, Declined> {
        let (mut flow, hello) = match self.prepare(&pair) {
            Ok(armed) => armed,
            Err(reason) => return Err(Declined { pair, reason }),
        };
        // As long as no other engine has it.
        pair.set_engine(EngineKind::Packet);
        let pair = match forward_hello(pair, hello).await {
            Ok(pair) => pair,
            Err(end) => return Ok(CarryResult::Finished(end)),
        };
        let (pair, takeover) = match timeout(TAKEOVER_GRACE, flow.wait_takeover(&pair)).await {
            Ok(takeover) => (pair, takeover),
            Err(_) => {
                let Ok(pair) = pair.register_backend() else {
                    return Ok(CarryResult::Finished(FlowEnd::BackendReset));
                };
                let takeover = flow.wait_takeover(&pair).await;
                (pair, takeover)
            }
        };
        if let Err(reason) = takeover {
            return Err(Declined { pair, reason: reason.label() });
        }
        flow.on_drop = OnDrop::ResetPeers;
        let counters = Arc::clone(&pair.counters);
        let lease = pair.close_silently();
        Ok(CarryResult::Offloaded(Box::new(OffloadedFlow { flow, lease, counters })))
    }
}

impl SocketPair {
    /// Has the back end's socket be what it is on other engines, as it may have to last.
    pub(super) fn apply_socket_options(&self) {
        if let Some(takeover) = &self.takeover {
            // Fails on a socket that is dead already.
            let _dead = self
                .backend
                .set_nodelay()
                .and_then(|()| self.backend.apply_timeouts(takeover.tcp_timeouts));
        }
    }

    /// The same, for whoever waits for it.
    pub(super) fn register_backend(self) -> io::Result<Self> {
        self.apply_socket_options();
        Ok(Self { backend: self.backend.register()?, ..self })
    }

    /// Forgets both sockets without a word to their peers; the port is still in use.
    fn close_silently(mut self) -> Option<PortLease> {
        for socket in [&self.client, &self.backend] {
            // What one that is not silent says is not let out (`sni_out`).
            let _not_silent = sys::enable_repair(socket);
        }
        self.takeover.take().map(|takeover| takeover.lease)
    }
}

/// Gives the back end what the client has said, which is in its socket to the last byte. Should that be
/// more by now, the programs find that the flow is not where it is `due`.
async fn forward_hello(mut pair: SocketPair, bytes: usize) -> Result<SocketPair, FlowEnd> {
    // Room for one more shows that this was all.
    let mut hello = Vec::with_capacity(bytes + 1);
    if pair.client.recv_available(&mut hello).is_err() || hello.is_empty() {
        return Err(pair.close(FlowEnd::ClientReset).await);
    }
    // There is room for it, as a rule; an error comes again.
    let sent = send(&pair.backend, &hello, SendFlags::NOSIGNAL).unwrap_or_default();
    if sent < hello.len() {
        pair = pair.register_backend().map_err(|_| FlowEnd::BackendReset)?;
        if pair.backend.write_all(&hello[sent..]).await.is_err() {
            return Err(pair.close(FlowEnd::BackendReset).await);
        }
    }
    pair.counters.add_bytes(hello.len(), 0);
    Ok(pair)
}

//! Sockmap engine: a BPF verdict program redirects what one socket receives to the other one.
//!
//! User space ends flows, and relays the directions that detach: those with a slow receiver, and bulk
//! with `engine = "auto"`.
//!
//! The agent inserts both sockets in the target map first and in the source map second. Then it lowers
//! `SO_RCVLOWAT`, which makes the kernel show the program the bytes that wait already. Each step is
//! free of races under the socket's lock, and the agent reads no byte before. docs/design/sockmap.md
//! has the reasons, and the traps of the kernel.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use snisplit_common::abi::Direction;
use snisplit_common::abi::sockmap::{BULK_BYTES_PER_WINDOW, DirectionEntry};
use tokio::net::TcpStream;
use tracing::level_filters::LevelFilter;

use super::splice::SpliceEngine;
use super::{
    DeclineReason, Declined, Engine, EngineKind, FlowEnd, LocalErrorStage, Peer, Socket, SocketPair,
};
use crate::bpf::address::mapped_octets;
use crate::bpf::{BpfError, SockmapProgram};
use crate::sys;

mod direction;
mod flow;
mod hangup_monitor;
mod lazy_socket;
mod receive_buffer;

use direction::FlowDirection;
use flow::{FlowEntryGuard, PreparedFlow};
use hangup_monitor::HangupMonitor;
use lazy_socket::failed_peer;
use receive_buffer::{cap_rcvbuf, raise_rcvlowat, uncap_rcvbuf};

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// The sockmap engine. Clones share the program.
#[derive(Clone)]
pub(crate) struct SockmapEngine {
    program: Arc<SockmapProgram>,
    hangup_monitor: Arc<HangupMonitor>,
    /// Carries the directions that detach.
    splice: SpliceEngine,
}

/// A socket pair that could not be inserted in the maps.
struct PrepareError {
    pair: SocketPair,
    cause: InsertError,
}

/// Why two sockets could not be inserted in the maps.
enum InsertError {
    /// No byte has moved, so that another engine can carry the flow.
    Declined(DeclineReason),
    /// The program may have moved a byte before this error.
    BytesMoved(BpfError),
}

impl SockmapEngine {
    /// Loads the program and starts the tasks that wait for its events. Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails if the program does not load or attach, or a task cannot start.
    pub(crate) fn load(log: LevelFilter, pins: Option<&Path>) -> Result<Self, BpfError> {
        let (program, events) = SockmapProgram::load(log, pins)?;
        let program = Arc::new(program);
        let hangup_monitor = Arc::new(HangupMonitor::start(Arc::clone(&program), events)?);
        Ok(Self { program, hangup_monitor, splice: SpliceEngine::default() })
    }

    /// The BPF program, for its counters and its log.
    pub(crate) fn program(&self) -> &SockmapProgram {
        &self.program
    }

    /// The id of a route in the `routes` map.
    pub(super) fn route_id(&self, name: &str) -> u32 {
        self.program.route_id(name)
    }

    /// Inserts a socket pair in the maps.
    fn prepare(&self, pair: SocketPair) -> Result<PreparedFlow, Box<PrepareError>> {
        let declined =
            |pair, reason| Box::new(PrepareError { pair, cause: InsertError::Declined(reason) });
        let SocketPair { client: Socket::Tcp(client), backend: Socket::Tcp(backend), .. } = &pair
        else {
            return Err(declined(pair, DeclineReason::NotTcp));
        };
        // The source map takes no half-closed socket (`sock_map_sk_state_allowed`).
        let is_open = |socket: &TcpStream| {
            sys::tcp_info(socket).is_ok_and(|info| info.state == TCP_ESTABLISHED)
        };
        if !is_open(client) || !is_open(backend) {
            return Err(declined(pair, DeclineReason::HalfClosed));
        }
        let bulk_threshold = if pair.detach_bulk { BULK_BYTES_PER_WINDOW } else { 0 };
        let entries = match self.insert_sockets(client, backend, pair.route_id, bulk_threshold) {
            Ok(entries) => entries,
            Err(cause) => return Err(Box::new(PrepareError { pair, cause })),
        };
        match pair {
            SocketPair {
                client: Socket::Tcp(client),
                backend: Socket::Tcp(backend),
                counters,
                ..
            } => Ok(PreparedFlow { client, backend, counters, entries }),
            pair => Err(declined(pair, DeclineReason::NotTcp)),
        }
    }

    /// Inserts both sockets and their flow entries, or nothing.
    fn insert_sockets(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        route_id: u32,
        bulk_threshold: u64,
    ) -> Result<FlowEntryGuard, InsertError> {
        let program = &self.program;
        let directions = self
            .insert_entries(client, backend, route_id, bulk_threshold)
            .map_err(|_| InsertError::Declined(DeclineReason::NoFlowEntry))?;
        let entries = FlowEntryGuard::new(Arc::clone(program), directions);
        let [up, down] = directions;
        let targets = program
            .add_target(up.cookie, client)
            .and_then(|()| program.add_target(down.cookie, backend));
        targets.map_err(|_| InsertError::Declined(DeclineReason::MapFull))?;
        // `raise_rcvlowat` keeps the program from moving bytes before both sockets are sources. A
        // socket that is half-closed by then is refused, and the other one may have moved bytes.
        let both = [client, backend];
        let sources = both
            .into_iter()
            .try_for_each(|socket| cap_rcvbuf(socket).and_then(|()| raise_rcvlowat(socket)))
            .map_err(BpfError::from)
            .and_then(|()| program.add_source(down.cookie, backend))
            .and_then(|()| program.add_source(up.cookie, client));
        if let Err(error) = sources {
            program.remove_source(down.cookie);
            let restored = both.map(|socket| {
                uncap_rcvbuf(socket);
                sys::set_rcvlowat(socket, 1).is_ok()
            });
            let is_pristine = up.is_pristine(program) && down.is_pristine(program);
            return Err(if is_pristine && restored == [true; 2] {
                InsertError::Declined(DeclineReason::SockmapUpdateFailed)
            } else {
                InsertError::BytesMoved(error)
            });
        }
        Ok(entries)
    }

    /// Counts the bytes of both sockets so far, and inserts a flow entry for each direction.
    fn insert_entries(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        route_id: u32,
        bulk_threshold: u64,
    ) -> Result<[FlowDirection; 2], BpfError> {
        let up = FlowDirection::new(Peer::Client, client, backend)?;
        let down = FlowDirection::new(Peer::Backend, backend, client)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (from, to) = (client.peer_addr()?, backend.peer_addr()?);
        let entry = |egress_cookie, direction| DirectionEntry {
            egress_cookie,
            started_at: now.as_secs(),
            direction,
            route_id,
            bulk_threshold,
            client_address: mapped_octets(from.ip()),
            client_port: from.port(),
            backend_address: mapped_octets(to.ip()),
            backend_port: to.port(),
            ..DirectionEntry::default()
        };
        let program = &self.program;
        let inserted =
            program.insert_flow_entry(up.cookie, entry(down.cookie, Direction::Up)).and_then(
                |()| program.insert_flow_entry(down.cookie, entry(up.cookie, Direction::Down)),
            );
        if inserted.is_err() {
            program.remove_flow_entry(up.cookie);
        }
        inserted.map(|()| [up, down])
    }
}

impl Engine for SockmapEngine {
    type Declined = Declined;

    async fn carry(&self, pair: SocketPair) -> Result<FlowEnd, Declined> {
        let counters = Arc::clone(&pair.counters);
        let flow = match self.prepare(pair) {
            Ok(flow) => flow,
            Err(error) => {
                let PrepareError { pair, cause } = *error;
                return match cause {
                    InsertError::Declined(reason) => Err(Declined { pair, reason }),
                    InsertError::BytesMoved(error) => {
                        pair.set_engine(EngineKind::Sockmap);
                        // Dropping the pair resets both peers.
                        Ok(match failed_peer(&pair.client, &pair.backend) {
                            Some(peer) => FlowEnd::reset_by(peer),
                            None => FlowEnd::local_error(LocalErrorStage::SockmapUpdate, &error),
                        })
                    }
                };
            }
        };
        counters.set_engine(EngineKind::Sockmap);
        Ok(flow.run(&self.hangup_monitor, &self.splice).await)
    }
}

//! The kernel forwards: a verdict program on a socket map redirects what one socket receives to the
//! other. User space only ends flows, and relays what a slow receiver leaves to it.
//!
//! Order of arming: targets first, sources second, then a kick for the bytes that wait already; each
//! step is race-free under the socket's lock, and nothing is read before. Why, and every trap on the
//! way, stands in `proxy-ebpf` and ARCHITECTURE.md.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use snisplit_common::abi::Direction;
use snisplit_common::abi::sockmap::{BULK_BYTES_PER_WINDOW, DirectionEntry};
use tokio::net::TcpStream;
use tracing::level_filters::LevelFilter;

use super::splice::SpliceEngine;
use super::{Declined, Engine, EngineKind, FlowEnd, Peer, Socket, SocketPair};
use crate::bpf::address::mapped_octets;
use crate::bpf::{BpfError, SockmapProgram};
use crate::sys;

mod accounting;
mod direction;
mod flow;
mod hangup_monitor;
mod lazy_socket;

pub(super) use accounting::bytes_written_exact as handed;
use accounting::{cap_rcvbuf, raise_rcvlowat, uncap_rcvbuf};
use direction::FlowDirection;
use flow::{FlowEntryGuard, PreparedFlow};
use hangup_monitor::HangupMonitor;

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// Forwards by sockmap; cloning shares it.
#[derive(Clone)]
pub(crate) struct SockmapEngine {
    program: Arc<SockmapProgram>,
    hangup_monitor: Arc<HangupMonitor>,
    /// For directions that the kernel gives up.
    splice: SpliceEngine,
}

impl SockmapEngine {
    /// Loads the program, and begins to listen to it. Needs a running tokio.
    pub(crate) fn load(log: LevelFilter, pins: Option<&Path>) -> Result<Self, BpfError> {
        let (program, events) = SockmapProgram::load(log, pins)?;
        let program = Arc::new(program);
        let hangup_monitor = Arc::new(HangupMonitor::start(Arc::clone(&program), events)?);
        Ok(Self { program, hangup_monitor, splice: SpliceEngine::default() })
    }

    /// The program's counters and log.
    pub(crate) fn program(&self) -> &SockmapProgram {
        &self.program
    }

    /// The number of a route, for the pins.
    pub(super) fn route_id(&self, name: &str) -> u32 {
        self.program.route_id(name)
    }

    /// Everything up to the kick. `Err` is the pair as it was, and why.
    fn prepare(&self, pair: SocketPair) -> Result<PreparedFlow, Box<Declined>> {
        let declined = |pair, reason| Box::new(Declined { pair, reason });
        let SocketPair { client: Socket::Tcp(client), backend: Socket::Tcp(backend), .. } = &pair
        else {
            return Err(declined(pair, "not_tcp"));
        };
        // A half-closed socket cannot become a source (sock_map_sk_state_allowed).
        let is_open = |socket: &TcpStream| {
            sys::tcp_info(socket).is_ok_and(|info| info.state == TCP_ESTABLISHED)
        };
        if !is_open(client) || !is_open(backend) {
            return Err(declined(pair, "half_closed"));
        }
        let entries = match self.insert_sockets(
            client,
            backend,
            (pair.route_id, if pair.detach_bulk { BULK_BYTES_PER_WINDOW } else { 0 }),
        ) {
            Ok(entries) => entries,
            Err(reason) => return Err(declined(pair, reason)),
        };
        match pair {
            SocketPair {
                client: Socket::Tcp(client),
                backend: Socket::Tcp(backend),
                counters,
                ..
            } => Ok(PreparedFlow { client, backend, counters, entries }),
            pair => Err(declined(pair, "not_tcp")),
        }
    }

    /// Puts both sockets into the maps, or leaves nothing of them there.
    fn insert_sockets(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        route_and_threshold: (u32, u64),
    ) -> Result<FlowEntryGuard, &'static str> {
        let program = &self.program;
        let directions = self
            .insert_entries(client, backend, route_and_threshold)
            .map_err(|_| "no_flow_entry")?;
        let entries = FlowEntryGuard::new(Arc::clone(program), directions);
        let [up, down] = directions;
        let targets = program
            .add_target(up.cookie, client)
            .and_then(|()| program.add_target(down.cookie, backend));
        targets.map_err(|_| "map_full")?;
        // Bytes move when both are sources, by the kick. Who closes its side in this very instant cannot
        // be one any more, and what has begun then is not handed back.
        let both = [client, backend];
        let sources = both
            .into_iter()
            .try_for_each(|socket| cap_rcvbuf(socket).and_then(|()| raise_rcvlowat(socket)))
            .map_err(BpfError::from)
            .and_then(|()| program.add_source(down.cookie, backend))
            .and_then(|()| program.add_source(up.cookie, client));
        if sources.is_err() {
            program.remove_source(down.cookie);
            let restored = both.map(|socket| {
                uncap_rcvbuf(socket);
                sys::set_rcvlowat(socket, 1).is_ok()
            });
            let is_pristine = up.is_pristine(program) && down.is_pristine(program);
            return Err(if is_pristine && restored == [true; 2] {
                "sockmap_update_failed"
            } else {
                BYTES_MOVED
            });
        }
        Ok(entries)
    }

    /// The accounts of both directions, on both sides of the kernel's line.
    fn insert_entries(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        (route, bulk_threshold): (u32, u64),
    ) -> Result<[FlowDirection; 2], BpfError> {
        let up = FlowDirection::new(Peer::Client, client, backend)?;
        let down = FlowDirection::new(Peer::Backend, backend, client)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (from, to) = (client.peer_addr()?, backend.peer_addr()?);
        let flow = |peer, direction| DirectionEntry {
            egress_cookie: peer,
            started_at: now.as_secs(),
            direction,
            route_id: route,
            bulk_threshold,
            client_address: mapped_octets(from.ip()),
            client_port: from.port(),
            backend_address: mapped_octets(to.ip()),
            backend_port: to.port(),
            ..DirectionEntry::default()
        };
        let added =
            self.program.insert_flow_entry(up.cookie, flow(down.cookie, Direction::Up)).and_then(
                |()| self.program.insert_flow_entry(down.cookie, flow(up.cookie, Direction::Down)),
            );
        if added.is_err() {
            self.program.remove_flow_entry(up.cookie);
        }
        added.map(|()| [up, down])
    }
}

/// Not handed back: a byte has moved.
const BYTES_MOVED: &str = "begun";

impl Engine for SockmapEngine {
    type Declined = Declined;

    async fn carry(&self, pair: SocketPair) -> Result<FlowEnd, Declined> {
        let counters = Arc::clone(&pair.counters);
        let flow = match self.prepare(pair) {
            Ok(flow) => flow,
            Err(declined) if declined.reason == BYTES_MOVED => {
                // In doubt: dropping the pair resets both.
                declined.pair.set_engine(EngineKind::Sockmap);
                return Ok(FlowEnd::ClientReset);
            }
            Err(declined) => return Err(*declined),
        };
        counters.set_engine(EngineKind::Sockmap);
        Ok(flow.run(self).await)
    }
}

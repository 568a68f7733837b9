//! The kernel forwards: a verdict program on a socket map redirects what one socket receives to the
//! other. User space only ends flows, and relays what a slow receiver leaves to it.
//!
//! Order of arming: targets first, sources second, then a kick for the bytes that wait already; each
//! step is race-free under the socket's lock, and nothing is read before. Why, and every trap on the
//! way, stands in `proxy-ebpf` and ARCHITECTURE.md.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use snisplit_common::abi::{BULK_BYTES_PER_WINDOW, Direction, DirectionEntry};
use tokio::net::TcpStream;
use tracing::level_filters::LevelFilter;

use super::splice::Splice;
use super::{Declined, End, Engine, Pair, Side, Socket, Tier};
use crate::kernel::address::octets;
use crate::kernel::{KernelError, Verdict};
use crate::sys;

mod flow;
mod keeper;
mod lane;
mod quiet;
mod stock;

use flow::{Account, Armed};
use keeper::Keeper;
use lane::Lane;
pub(super) use stock::steady_handed as handed;
use stock::{bound, hold, unbound};

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// Forwards by sockmap; cloning shares it.
#[derive(Clone)]
pub(crate) struct Sockmap {
    verdict: Arc<Verdict>,
    keeper: Arc<Keeper>,
    /// For directions that the kernel gives up.
    splice: Splice,
}

impl Sockmap {
    /// Loads the program, and begins to listen to it. Needs a running tokio.
    pub(crate) fn load(log: LevelFilter, pins: Option<&Path>) -> Result<Self, KernelError> {
        let (verdict, events) = Verdict::load(log, pins)?;
        let verdict = Arc::new(verdict);
        let keeper = Arc::new(Keeper::start(Arc::clone(&verdict), events)?);
        Ok(Self { verdict, keeper, splice: Splice::default() })
    }

    /// The program's counters and log.
    pub(crate) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The number of a route, for the pins.
    pub(super) fn route(&self, name: &str) -> u32 {
        self.verdict.route(name)
    }

    /// Everything up to the kick. `Err` is the pair as it was, and why.
    fn arm(&self, pair: Pair) -> Result<Armed, Box<Declined>> {
        let declined = |pair, reason| Box::new(Declined { pair, reason });
        let Pair { client: Socket::Tcp(client), backend: Socket::Tcp(backend), .. } = &pair else {
            return Err(declined(pair, "not_tcp"));
        };
        // A half-closed socket cannot become a source (sock_map_sk_state_allowed).
        let is_open = |socket: &TcpStream| {
            sys::tcp_info(socket).is_ok_and(|info| info.state == TCP_ESTABLISHED)
        };
        if !is_open(client) || !is_open(backend) {
            return Err(declined(pair, "half_closed"));
        }
        let account = match self.enter(
            client,
            backend,
            (pair.route, if pair.may_turn_bulk { BULK_BYTES_PER_WINDOW } else { 0 }),
        ) {
            Ok(account) => account,
            Err(reason) => return Err(declined(pair, reason)),
        };
        match pair {
            Pair { client: Socket::Tcp(client), backend: Socket::Tcp(backend), tally, .. } => {
                Ok(Armed { client, backend, tally, account })
            }
            pair => Err(declined(pair, "not_tcp")),
        }
    }

    /// Puts both sockets into the maps, or leaves nothing of them there.
    fn enter(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        about: (u32, u64),
    ) -> Result<Account, &'static str> {
        let verdict = &self.verdict;
        let lanes = self.prepare(client, backend, about).map_err(|_| "no_account")?;
        let account = Account::new(Arc::clone(verdict), lanes);
        let [up, down] = lanes;
        let targets = verdict
            .add_target(up.cookie, client)
            .and_then(|()| verdict.add_target(down.cookie, backend));
        targets.map_err(|_| "no_room")?;
        // Bytes move when both are sources, by the kick. Who closes its side in this very instant cannot
        // be one any more, and what has begun then is not handed back.
        let both = [client, backend];
        let sources = both
            .into_iter()
            .try_for_each(|socket| bound(socket).and_then(|()| hold(socket)))
            .map_err(KernelError::from)
            .and_then(|()| verdict.add_source(down.cookie, backend))
            .and_then(|()| verdict.add_source(up.cookie, client));
        if sources.is_err() {
            verdict.remove_source(down.cookie);
            let back = both.map(|socket| {
                unbound(socket);
                sys::set_receive_low_water(socket, 1).is_ok()
            });
            let is_whole = up.is_untouched(verdict) && down.is_untouched(verdict);
            return Err(if is_whole && back == [true; 2] { "no_source" } else { BEGUN });
        }
        Ok(account)
    }

    /// The accounts of both directions, on both sides of the kernel's line.
    fn prepare(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        (route, bulk): (u32, u64),
    ) -> Result<[Lane; 2], KernelError> {
        let up = Lane::open(Side::Client, client, backend)?;
        let down = Lane::open(Side::Backend, backend, client)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (from, to) = (client.peer_addr()?, backend.peer_addr()?);
        let flow = |peer, direction| DirectionEntry {
            egress_cookie: peer,
            started_at: now.as_secs(),
            direction,
            route_id: route,
            bulk_threshold: bulk,
            client_address: octets(from.ip()),
            client_port: from.port(),
            backend_address: octets(to.ip()),
            backend_port: to.port(),
            ..DirectionEntry::default()
        };
        let added = self
            .verdict
            .add_flow(up.cookie, flow(down.cookie, Direction::Up))
            .and_then(|()| self.verdict.add_flow(down.cookie, flow(up.cookie, Direction::Down)));
        if added.is_err() {
            self.verdict.remove_flow(up.cookie);
        }
        added.map(|()| [up, down])
    }
}

/// Not handed back: a byte has moved.
const BEGUN: &str = "begun";

impl Engine for Sockmap {
    type Declined = Declined;

    async fn carry(&self, pair: Pair) -> Result<End, Declined> {
        let tally = Arc::clone(&pair.tally);
        let armed = match self.arm(pair) {
            Ok(armed) => armed,
            Err(back) if back.reason == BEGUN => {
                // In doubt: dropping the pair resets both.
                back.pair.settle(Tier::Sockmap);
                return Ok(End::ClientReset);
            }
            Err(back) => return Err(*back),
        };
        tally.settle(Tier::Sockmap);
        Ok(armed.run(self).await)
    }
}

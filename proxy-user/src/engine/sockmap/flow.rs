//! A flow that the kernel carries: user space waits for its end, and sees to it that nothing is lost
//! there.
//!
//! The kernel drops a backlog without a word on `shutdown`, `close` and removal from the map, so each
//! of them waits until it is empty.

use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snisplit_common::abi::DirectionState;
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::super::splice::Splice;
use super::super::{End, Side, Tally, flush, without_reset};
use super::Sockmap;
use super::lane::{Broken, Lane, PAUSE};
use super::quiet::{Condition, Quiet, Sockets, condition};
use crate::kernel::Verdict;
use crate::sys;

/// A pair in the maps, before the kick for the bytes that wait in it.
pub(super) struct Armed {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    pub(super) tally: Arc<Tally>,
    pub(super) account: Account,
}

/// Both directions, up and down; dropping it takes them out of the program's sight.
pub(super) struct Account {
    verdict: Arc<Verdict>,
    pub(super) lanes: [Lane; 2],
    /// Bytes that user space carried after the kernel had left.
    relayed: [AtomicU64; 2],
}

impl Account {
    pub(super) fn new(verdict: Arc<Verdict>, lanes: [Lane; 2]) -> Self {
        Self { verdict, lanes, relayed: Default::default() }
    }

    /// Bytes delivered, up and down.
    fn moved(&self) -> (u64, u64) {
        let of = |index: usize| {
            let redirected = self.verdict.flow(self.lanes[index].cookie);
            let relayed = self.relayed[index].load(Ordering::Relaxed);
            redirected.map_or(0, |flow| flow.redirected_bytes) + relayed
        };
        (of(0), of(1))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for lane in &self.lanes {
            self.verdict.remove_socket(lane.cookie);
            self.verdict.remove_flow(lane.cookie);
        }
    }
}

impl Armed {
    /// Carries both directions to their end.
    pub(super) async fn run(self, engine: &Sockmap) -> End {
        let Self { client, backend, tally, account } = self;
        let account = Arc::new(account);
        let counted = Arc::clone(&account);
        let _metered = tally.metered(move || counted.moved());
        let (Ok(client), Ok(backend)) = (Quiet::new(client), Quiet::new(backend)) else {
            return End::ClientReset;
        };
        let cookies = account.lanes.map(|lane| lane.cookie);
        let Ok(watched) = engine.keeper.watch([&client, &backend], cookies) else {
            return End::ClientReset;
        };
        // Bytes that came before the sockets were sources wait for this (tcp_set_rcvlowat).
        if [&backend, &client].into_iter().any(|s| sys::set_receive_low_water(s, 1).is_err()) {
            return End::ClientReset;
        }
        let splice = &engine.splice;
        let flow = Running { splice, client: &client, backend: &backend, account: &account };
        match flow.lanes(&watched.bell).await {
            Ok(()) => {
                [&client, &backend].into_iter().for_each(without_reset);
                End::Closed
            }
            Err(side) => flow.reset(side).await,
        }
    }
}

struct Running<'f> {
    splice: &'f Splice,
    client: &'f Quiet,
    backend: &'f Quiet,
    account: &'f Account,
}

impl<'f> Running<'f> {
    fn sockets(&self, lane: Lane) -> Sockets<'f> {
        match lane.side {
            Side::Client => Sockets { from: self.client, to: self.backend },
            Side::Backend => Sockets { from: self.backend, to: self.client },
        }
    }

    /// Both directions, until both ends have been passed on; `Err` is the side that broke.
    async fn lanes(&self, bell: &watch::Receiver<()>) -> Result<(), Side> {
        let [up, down] = self.account.lanes;
        let (mut up_ends, mut down_ends) =
            (pin!(self.lane(0, bell.clone())), pin!(self.lane(1, bell.clone())));
        let (first, lane, other_lane, other_ends) = select! {
            ended = &mut up_ends => (ended, up, down, down_ends),
            ended = &mut down_ends => (ended, down, up, up_ends),
        };
        match first {
            Ok(()) => other_ends.await.map_err(|broken| other_lane.broken(broken)),
            Err(Broken::To) => {
                // The dead side may have said something before it died: that still has a reader.
                let _also_broken = other_ends.await;
                Err(lane.broken(Broken::To))
            }
            Err(Broken::From) => Err(lane.broken(Broken::From)),
        }
    }

    /// One direction, until its end has been passed on.
    async fn lane(&self, index: usize, mut bell: watch::Receiver<()>) -> Result<(), Broken> {
        let lane = self.account.lanes[index];
        let (verdict, sockets) = (&self.account.verdict, self.sockets(lane));
        let mut pause = PAUSE.0;
        loop {
            bell.mark_unchanged();
            if condition(sockets.to) == Condition::Broken {
                return Err(Broken::To);
            }
            // What a broken socket said before is still delivered.
            match lane.flow(verdict)?.state {
                DirectionState::Overflowing | DirectionState::Detaching => {
                    Box::pin(self.leave(index)).await?;
                    break;
                }
                DirectionState::Pending
                | DirectionState::Redirecting
                | DirectionState::Poisoned => {}
            }
            match condition(sockets.from) {
                Condition::Open => {
                    _ = bell.changed().await;
                    continue;
                }
                // A reset behind an end of stream takes nothing of that back (`SOCK_DONE`, as read(2)
                // sees it).
                Condition::Broken if !lane.has_ended(verdict, sockets.from)? => {
                    return Err(Broken::From);
                }
                Condition::Broken | Condition::Ended => {}
            }
            if lane.is_drained(verdict, sockets)? {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        let _reset_meanwhile = sockets.to.shutdown(Shutdown::Write);
        Ok(())
    }

    async fn leave(&self, index: usize) -> Result<(), Broken> {
        let Account { verdict, lanes, relayed } = self.account;
        let sockets = self.sockets(lanes[index]);
        lanes[index].leave(verdict, sockets, self.splice, &relayed[index]).await
    }

    /// The survivor gets what the kernel took for it; then dropping both resets both.
    async fn reset(&self, broken: Side) -> End {
        let (index, survivor, end) = match broken {
            Side::Client => (0, self.backend, End::ClientReset),
            Side::Backend => (1, self.client, End::BackendReset),
        };
        let lane = self.account.lanes[index];
        let errors = [self.client, self.backend].map(|socket| socket.take_error());
        let states = self.account.lanes.map(|lane| self.account.verdict.flow(lane.cookie));
        debug!(?broken, ?errors, ?states, "the flow is reset");
        if lane.wait_handed(&self.account.verdict, survivor).await.is_ok() {
            flush(survivor).await;
        }
        end
    }
}

//! A flow from its hello to its end: first with sockets, then without.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};
use snisplit_common::abi::packet::{Splice, SpliceState, Why};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::{End, Tally, Tier};
use super::keeper::News;
use super::{Lease, Packet, cut};

/// Between looks whether a flow's peers are still there: nobody keeps it alive by the leg any more.
const LOOK: Duration = Duration::from_secs(600);
/// How long one of them may be silent, as no firewall between them would bear for longer
/// (`nf_conntrack_tcp_timeout_established` is five days; RFC 5382 §5 asks for two hours).
const SILENCE: Duration = Duration::from_secs(2 * 3_600 + 240);

/// A flow that the programs know.
pub(super) struct Flow {
    pub(super) engine: Packet,
    pub(super) number: u64,
    pub(super) state: watch::Receiver<News>,
    pub(super) stage: Stage,
}

/// What becomes of a flow that is let go of.
pub(super) enum Stage {
    /// It has sockets: it is forgotten.
    Armed,
    /// It has none: it is cut.
    Flying,
    /// What is repeated of its end still has its way.
    Ended(Lease),
}

impl Drop for Flow {
    fn drop(&mut self) {
        let Packet { splicer, keeper, .. } = &self.engine;
        keeper.forget(self.number);
        match &self.stage {
            Stage::Armed => splicer.remove(self.number),
            Stage::Flying => {
                let splice = splicer.splice(self.number);
                splicer.remove(self.number);
                splice.iter().for_each(cut::reset);
            }
            Stage::Ended(_lease) => keeper.bury(self.number),
        }
    }
}

impl Flow {
    fn splice(&self) -> Option<Splice> {
        self.engine.splicer.splice(self.number)
    }

    /// Waits until it is clear whose flow it is; `Err` is why it stays with its sockets.
    pub(super) async fn decided(
        &mut self,
        client: &TcpStream,
        backend: &TcpStream,
    ) -> Result<(), Why> {
        let is_told = select! {
            told = self.state.wait_for(News::is_decided) => match told.as_deref() {
                Ok(News::State(state)) if state.is_translated() => return Ok(()),
                Ok(News::State(_)) => true,
                Ok(News::Cut) | Err(_) => false,
            },
            // Whatever comes to a socket is for it to carry.
            () = stirs(client) => false,
            () = stirs(backend) => false,
        };
        if !is_told {
            let settled = self.engine.splicer.settle(self.number);
            if settled.is_ok_and(|state| state == SpliceState::Switching) {
                let _told = self.state.wait_for(News::is_decided).await;
            }
        }
        match self.splice() {
            Some(splice) if splice.state.is_translated() => Ok(()),
            Some(splice) => Err(splice.why),
            None => Err(Why::NoSocket),
        }
    }

    /// Sees one without sockets to its end.
    pub(super) async fn fly(&mut self, lease: Option<Lease>, tally: &Tally) -> End {
        tally.settle(Tier::Packet);
        let (splicer, number) = (Arc::clone(&self.engine.splicer), self.number);
        let _metered =
            tally.metered(move || splicer.splice(number).as_ref().map_or((0, 0), cut::delivered));
        let (end, is_told) = self.end().await;
        if let Some(lease) = lease.filter(|_| is_told) {
            self.stage = Stage::Ended(lease);
        }
        end
    }

    /// Waits for the end of one without sockets, and whether its peers know of it.
    async fn end(&mut self) -> (End, bool) {
        loop {
            let over = timeout(LOOK, self.state.wait_for(|news| news.end().is_some())).await;
            if let Some(end) = over.ok().and_then(Result::ok).and_then(|news| news.end()) {
                return end;
            }
            let seen = self.splice().map_or((0, 0), |it| (it.up.last_seen, it.down.last_seen));
            match (silence(seen.0) > SILENCE, silence(seen.1) > SILENCE) {
                (true, _) => return (End::ClientReset, false),
                (_, true) => return (End::BackendReset, false),
                _ => {}
            }
        }
    }
}

/// Waits until a socket has something to say.
async fn stirs(socket: &TcpStream) {
    while socket.readable().await.is_ok() {
        let peek = || Ok(recv(socket, &mut [0; 1], RecvFlags::PEEK)?.0);
        match socket.try_io(Interest::READABLE, peek) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// How long ago that was, of a clock that the programs read (nanoseconds, CLOCK_MONOTONIC).
pub(super) fn silence(since: u64) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
    now.saturating_sub(Duration::from_nanos(since))
}

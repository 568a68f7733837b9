//! A flow from its hello to its end: first with sockets, then without.

use std::future::pending;
use std::io;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use snisplit_common::abi::packet::{FallbackReason, FlowEntry, FlowState};
use tokio::io::Interest;
use tokio::select;
use tokio::task::yield_now;

use super::super::{End, Pair, Socket, Tally, Tier};
use super::story::{News, Story};
use super::{Lease, Packet, cut};

/// A flow that the programs know.
pub(super) struct Flow {
    pub(super) engine: Packet,
    pub(super) number: u64,
    pub(super) story: Arc<Story>,
    pub(super) stage: Stage,
}

/// One that has no sockets any more.
pub(crate) struct Flight {
    pub(super) flow: Flow,
    pub(super) lease: Option<Lease>,
    pub(super) tally: Arc<Tally>,
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
            Stage::Armed => _ = splicer.remove(self.number),
            Stage::Flying => splicer.remove(self.number).iter().for_each(cut::reset),
            Stage::Ended(_lease) => keeper.bury(self.number),
        }
    }
}

impl Flow {
    fn splice(&self) -> Option<FlowEntry> {
        self.engine.splicer.splice(self.number)
    }

    /// Waits until it is clear whose flow it is; `Err` is why it stays with its sockets. May be called off and
    /// called again.
    pub(super) async fn decided(&self, pair: &Pair) -> Result<(), FallbackReason> {
        let is_told = select! {
            told = self.story.wait_for(News::is_decided) => match told {
                News::State(state) if state.is_translated() => return Ok(()),
                News::State(_) => true,
                News::Silent(_) | News::Cut => false,
            },
            // Whatever comes to a socket is for it to carry.
            () = stirs(&pair.client) => false,
            () = stirs(&pair.backend) => false,
        };
        if !is_told {
            let _unknown = self.engine.splicer.settle(self.number);
        }
        loop {
            match self.splice() {
                Some(splice) if splice.state.is_translated() => return Ok(()),
                // For as long as a program takes on another CPU.
                Some(splice) if splice.state == FlowState::TakingOver => yield_now().await,
                Some(splice) => return Err(splice.fallback_reason),
                None => return Err(FallbackReason::NoSocket),
            }
        }
    }
}

impl Flight {
    /// Sees it to its end.
    pub(crate) async fn land(&mut self) -> End {
        let Self { flow, lease, tally } = self;
        tally.settle(Tier::Packet);
        let (splicer, number) = (Arc::clone(&flow.engine.splicer), flow.number);
        let story = Arc::clone(&flow.story);
        let now =
            move || splicer.splice(number).as_ref().map_or((0, 0), FlowEntry::delivered_bytes);
        let _metered = tally.metered(move || story.delivered().unwrap_or_else(&now));
        let last = flow.story.wait_for(|news| news.end().is_some()).await;
        // Nothing else was waited for.
        let (end, is_told) = last.end().unwrap_or((End::Cut, false));
        if let Some(lease) = lease.take().filter(|_| is_told) {
            flow.stage = Stage::Ended(lease);
        }
        end
    }
}

/// Waits until a socket has something to say. Of one that is not watched nobody knows.
async fn stirs(socket: &Socket) {
    if let Socket::Fresh(_) = socket {
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

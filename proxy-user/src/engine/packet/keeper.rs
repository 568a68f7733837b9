//! Who is told what the kernel makes of a flow, and what is left of flows that have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snisplit_common::abi::packet::{
    FlowEntry, FlowEvent, FlowState, MAX_PACKET_FLOWS, PacketCounter,
};
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::sleep;

use super::super::Side;
use super::clock::{now, silence};
use super::story::{News, Story};
use crate::kernel::packet::{Events, Splicer};

/// How long what is repeated of a flow's end is still translated, as TIME-WAIT is kept (`TCP_TIMEWAIT_LEN`,
/// include/net/tcp.h). Another connection by its port ends it before (`sni_out`).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Between looks at the graves, and for events that were lost.
const LOOK: Duration = Duration::from_secs(1);
/// Until what is left of a flow is erased.
const SOON: Duration = Duration::from_millis(100);
/// Between looks whether the peers of flows are still there.
const LISTEN: Duration = Duration::from_secs(600);
/// How long one of them may be silent, as no firewall between them would bear for longer
/// (`nf_conntrack_tcp_timeout_established` is five days; RFC 5382 §5 asks for two hours).
const SILENCE: Duration = Duration::from_secs(2 * 3_600 + 240);
/// Graves that leave room for the living.
const MANY: usize = MAX_PACKET_FLOWS / 2;

/// Listens to the programs as long as it lives.
pub(super) struct Keeper {
    splicer: Arc<Splicer>,
    flows: Mutex<HashMap<u64, Arc<Story>>>,
    /// Flows that have ended, and since when; the oldest first.
    graves: Mutex<VecDeque<(u64, Instant)>>,
}

impl Keeper {
    /// The tasks end with the answer. Needs a running tokio.
    pub(super) fn start(splicer: Arc<Splicer>, events: Events) -> (Arc<Self>, JoinSet<()>) {
        let keeper = Arc::new(Self { splicer, flows: Mutex::default(), graves: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(Arc::clone(&keeper), events));
        tasks.spawn(look(Arc::clone(&keeper)));
        tasks.spawn(erase(Arc::clone(&keeper.splicer)));
        (keeper, tasks)
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<u64, Arc<Story>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn graves(&self) -> MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.graves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a flow from before it is armed.
    pub(super) fn follow(&self, number: u64) -> Arc<Story> {
        let story = Arc::new(Story::default());
        self.flows().insert(number, Arc::clone(&story));
        story
    }

    pub(super) fn forget(&self, number: u64) {
        self.flows().remove(&number);
    }

    /// Leaves the rest of a flow that has ended to the kernel for a while.
    pub(super) fn bury(&self, number: u64) {
        self.graves().push_back((number, Instant::now()));
    }

    /// Passes on what has become of a flow.
    pub(super) fn tell(&self, number: u64, news: News) {
        if let Some(story) = self.flows().get(&number) {
            story.tell(news);
        }
    }

    /// Passes on what the programs say of a flow.
    fn pass_on(&self, told: &FlowEvent) {
        if told.state == FlowState::Pending {
            // Its grave is empty from now on.
            self.splicer.discard(told.flow_id);
        }
        if let Some(story) = self.flows().get(&told.flow_id) {
            if told.state.is_terminal() {
                story.conclude((told.bytes_up, told.bytes_down));
            }
            story.tell(News::State(told.state));
        }
    }

    /// Looks at one flow after the other: nothing that begins meanwhile waits for all of them.
    async fn listen_to_peers(&self) {
        let numbers: Vec<u64> = self.flows().keys().copied().collect();
        for number in numbers {
            if let Some(side) =
                self.splicer.splice(number).and_then(|splice| silent(&splice, now()))
            {
                self.tell(number, News::Silent(side));
            }
            yield_now().await;
        }
    }

    /// Forgets what has been kept for so long.
    fn sweep(&self) {
        let limit = if self.graves().len() > MANY { LOOK } else { TIME_WAIT };
        let is_due = |(_, dug): &mut (u64, Instant)| dug.elapsed() >= limit;
        // Whoever ends a flow meanwhile does not wait for these system calls.
        let next = || self.graves().pop_front_if(is_due);
        std::iter::from_fn(next).for_each(|(number, _)| _ = self.splicer.remove(number));
    }
}

async fn listen(keeper: Arc<Keeper>, mut events: Events) {
    // A ring that fails leaves the looks.
    while let Ok(told) = events.next().await {
        told.iter().for_each(|told| keeper.pass_on(told));
    }
}

async fn look(keeper: Arc<Keeper>) {
    let mut lost = 0;
    let mut listened: Option<Instant> = None;
    loop {
        sleep(LOOK).await;
        let before = lost;
        lost = keeper.splicer.count(PacketCounter::EventLost).unwrap_or_default();
        if lost != before {
            for (number, splice) in keeper.splicer.splices() {
                keeper.tell(number, News::State(splice.state));
            }
        }
        // At once to those of a former agent: how long there was none, nobody knows.
        if listened.map_or(!keeper.flows().is_empty(), |at| at.elapsed() > LISTEN) {
            listened = Some(Instant::now());
            keeper.listen_to_peers().await;
        }
        let cuts = keeper.splicer.cuts();
        cuts.into_iter().for_each(|number| keeper.tell(number, News::Cut));
        keeper.sweep();
    }
}

async fn erase(splicer: Arc<Splicer>) {
    loop {
        splicer.has_gone.notified().await;
        // Many at once.
        sleep(SOON).await;
        let splicer = Arc::clone(&splicer);
        let _panicked = spawn_blocking(move || splicer.erase()).await;
    }
}

/// The peer that may be gone, for it has said nothing for too long: nobody keeps these connections alive by
/// the leg.
fn silent(splice: &FlowEntry, now: Duration) -> Option<Side> {
    let sides = [(Side::Client, &splice.client_state), (Side::Backend, &splice.backend_state)];
    let (side, _) =
        sides.into_iter().find(|(_, said)| silence(said.last_seen_ns, now) > SILENCE)?;
    (splice.state == FlowState::Offloaded).then_some(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_says_nothing_for_two_hours_is_gone() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let seen = |client: u64, backend: u64| {
            let mut splice = FlowEntry { state: FlowState::Offloaded, ..FlowEntry::default() };
            splice.client_state.last_seen_ns = hours(client).as_nanos() as u64;
            splice.backend_state.last_seen_ns = hours(backend).as_nanos() as u64;
            splice
        };
        assert_eq!(silent(&seen(10, 10), hours(12)), None);
        assert_eq!(silent(&seen(9, 12), hours(12)), Some(Side::Client));
        assert_eq!(silent(&seen(12, 9), hours(12)), Some(Side::Backend));
        assert_eq!(silent(&seen(9, 9), hours(12)), Some(Side::Client));
        assert_eq!(silent(&seen(12, 13), hours(12)), None, "the programs' clock is ahead");
        let over = FlowEntry { state: FlowState::Closed, ..seen(9, 9) };
        assert_eq!(silent(&over, hours(12)), None);
    }
}

//! Who is told what the kernel makes of a flow, and what is left of flows that have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snisplit_common::abi::packet::{Fate, SPLICES_MAX, SpliceState, Told};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::End;
use crate::kernel::packet::{Events, Splicer};

/// How long what is repeated of a flow's end is still translated, as TIME-WAIT is kept (`TCP_TIMEWAIT_LEN`,
/// include/net/tcp.h). Another connection by its port ends it before (`sni_out`).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Between looks at the graves, and for events that were lost.
const LOOK: Duration = Duration::from_secs(1);
/// Graves that leave room for the living.
const MANY: usize = SPLICES_MAX / 2;

/// Listens to the programs as long as it lives.
pub(super) struct Keeper {
    splicer: Arc<Splicer>,
    flows: Mutex<HashMap<u64, watch::Sender<News>>>,
    /// Flows that have ended, and since when; the oldest first.
    graves: Mutex<VecDeque<(u64, Instant)>>,
}

/// What there is to say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// What it has become.
    State(SpliceState),
    /// Somebody wants it cut.
    Cut,
}

impl News {
    fn is_before(self, state: SpliceState) -> bool {
        matches!(self, Self::State(known) if (state as u64) > known as u64)
    }

    /// Whether it is clear whose flow it is.
    pub(super) const fn is_decided(&self) -> bool {
        match self {
            Self::State(state) => *state as u64 >= SpliceState::Spliced as u64,
            Self::Cut => true,
        }
    }

    /// How a flow without sockets has ended, and whether its peers know of it.
    pub(super) const fn end(self) -> Option<(End, bool)> {
        match self {
            Self::State(SpliceState::Closed) => Some((End::Closed, true)),
            Self::State(SpliceState::ClientReset) => Some((End::ClientReset, true)),
            Self::State(SpliceState::BackendReset) => Some((End::BackendReset, true)),
            Self::Cut => Some((End::Cut, false)),
            Self::State(_) => None,
        }
    }
}

impl Keeper {
    /// The tasks end with the answer. Needs a running tokio.
    pub(super) fn start(splicer: Arc<Splicer>, events: Events) -> (Arc<Self>, JoinSet<()>) {
        let keeper = Arc::new(Self { splicer, flows: Mutex::default(), graves: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(Arc::clone(&keeper), events));
        tasks.spawn(look(Arc::clone(&keeper)));
        (keeper, tasks)
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<News>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn graves(&self) -> MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.graves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a flow from before it is armed.
    pub(super) fn follow(&self, number: u64) -> watch::Receiver<News> {
        let (sender, receiver) = watch::channel(News::State(SpliceState::Armed));
        self.flows().insert(number, sender);
        receiver
    }

    pub(super) fn forget(&self, number: u64) {
        self.flows().remove(&number);
    }

    /// Leaves the rest of a flow that has ended to the kernel for a while.
    pub(super) fn bury(&self, number: u64) {
        self.graves().push_back((number, Instant::now()));
    }

    /// Passes on what has become of a flow.
    pub(super) fn tell(&self, number: u64, state: SpliceState) {
        if let Some(flow) = self.flows().get(&number) {
            // Later states have greater numbers, and a look may be behind an event.
            flow.send_if_modified(|known| {
                let is_news = known.is_before(state);
                if is_news {
                    *known = News::State(state);
                }
                is_news
            });
        }
    }

    /// Passes on that somebody wants a flow cut.
    fn cut(&self, number: u64) {
        if let Some(flow) = self.flows().get(&number) {
            flow.send_replace(News::Cut);
        }
    }

    /// Forgets what has been kept for so long.
    fn sweep(&self) {
        let limit = if self.graves().len() > MANY { LOOK } else { TIME_WAIT };
        let is_due = |(_, dug): &mut (u64, Instant)| dug.elapsed() >= limit;
        // Whoever ends a flow meanwhile does not wait for these system calls.
        let next = || self.graves().pop_front_if(is_due);
        std::iter::from_fn(next).for_each(|(number, _)| self.splicer.remove(number));
    }
}

async fn listen(keeper: Arc<Keeper>, mut events: Events) {
    // A ring that fails leaves the looks.
    while let Ok(told) = events.next().await {
        for Told { splice, state } in told {
            keeper.tell(splice, state);
        }
    }
}

async fn look(keeper: Arc<Keeper>) {
    let mut lost = 0;
    loop {
        sleep(LOOK).await;
        let before = lost;
        lost = keeper.splicer.count(Fate::EventLost).unwrap_or_default();
        if lost != before {
            for (number, splice) in keeper.splicer.splices() {
                keeper.tell(number, splice.state);
            }
        }
        keeper.splicer.cuts().into_iter().for_each(|number| keeper.cut(number));
        keeper.sweep();
    }
}

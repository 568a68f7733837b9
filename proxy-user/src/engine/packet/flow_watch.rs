//! What becomes of one flow: told by whoever listens to the programs, heard by the flow's task.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use snisplit_common::abi::packet::FlowState;
use tokio::sync::Notify;

use super::super::{FlowEnd, Peer};

/// The last news of a flow. One task may wait for them.
#[derive(Debug, Default)]
pub(super) struct FlowWatch {
    /// A place in [`FlowUpdate::ALL`].
    last: AtomicU8,
    notify: Notify,
    /// Bytes up and down, once the flow has ended.
    delivered: OnceLock<(u64, u64)>,
}

/// What there is to say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowUpdate {
    /// What it has become.
    State(FlowState),
    /// A peer has not been heard for too long.
    PeerDead(Peer),
    /// Somebody wants it cut.
    ResetRequested,
}

impl FlowUpdate {
    /// What comes later in the life of a flow comes later here.
    const ALL: [Self; 10] = [
        Self::State(FlowState::Pending),
        Self::State(FlowState::TakingOver),
        Self::State(FlowState::Offloaded),
        Self::State(FlowState::Fallback),
        Self::State(FlowState::Closed),
        Self::State(FlowState::ClientReset),
        Self::State(FlowState::BackendReset),
        Self::PeerDead(Peer::Client),
        Self::PeerDead(Peer::Backend),
        Self::ResetRequested,
    ];

    fn rank(self) -> u8 {
        Self::ALL.iter().position(|update| *update == self).unwrap_or_default() as u8
    }

    /// Whether it is clear whose flow it is.
    pub(super) const fn is_takeover_decided(self) -> bool {
        match self {
            Self::State(state) => state as u64 >= FlowState::Offloaded as u64,
            Self::PeerDead(_) | Self::ResetRequested => true,
        }
    }

    /// How a flow without sockets has ended, and whether its peers know of it.
    pub(super) const fn flow_end(self) -> Option<(FlowEnd, bool)> {
        match self {
            Self::State(FlowState::Closed) => Some((FlowEnd::Closed, true)),
            Self::State(FlowState::ClientReset) => Some((FlowEnd::ClientReset, true)),
            Self::State(FlowState::BackendReset) => Some((FlowEnd::BackendReset, true)),
            Self::PeerDead(Peer::Client) => Some((FlowEnd::ClientReset, false)),
            Self::PeerDead(Peer::Backend) => Some((FlowEnd::BackendReset, false)),
            Self::ResetRequested => Some((FlowEnd::OperatorReset, false)),
            Self::State(_) => None,
        }
    }
}

impl FlowWatch {
    /// News that are older than the last are none: a look may be behind an event.
    pub(super) fn publish(&self, update: FlowUpdate) {
        let rank = update.rank();
        if self.last.fetch_max(rank, Ordering::AcqRel) < rank {
            self.notify.notify_one();
        }
    }

    /// Bytes up and down, before the end is told.
    pub(super) fn set_delivered(&self, delivered: (u64, u64)) {
        let _known = self.delivered.set(delivered);
    }

    pub(super) fn delivered(&self) -> Option<(u64, u64)> {
        self.delivered.get().copied()
    }

    fn last(&self) -> FlowUpdate {
        FlowUpdate::ALL[usize::from(self.last.load(Ordering::Acquire))]
    }

    /// Waits until what there is to say `is` so.
    pub(super) async fn wait_for(&self, predicate: impl Fn(FlowUpdate) -> bool) -> FlowUpdate {
        loop {
            let last = self.last();
            if predicate(last) {
                return last;
            }
            // What was told since then has left a permit.
            self.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn updates_reach_a_later_waiter_and_never_go_back() {
        let watch = FlowWatch::default();
        watch.publish(FlowUpdate::State(FlowState::Closed));
        watch.publish(FlowUpdate::State(FlowState::Offloaded));
        assert_eq!(
            watch.wait_for(FlowUpdate::is_takeover_decided).await,
            FlowUpdate::State(FlowState::Closed)
        );
        let (update, ()) =
            tokio::join!(watch.wait_for(|update| update == FlowUpdate::ResetRequested), async {
                tokio::task::yield_now().await;
                watch.publish(FlowUpdate::ResetRequested);
            });
        assert_eq!(update.flow_end(), Some((FlowEnd::OperatorReset, false)));
    }

    #[test]
    fn rank_of_every_state_is_its_number() {
        for state in FlowState::ALL {
            assert_eq!(u64::from(FlowUpdate::State(state).rank()), state as u64);
        }
    }
}

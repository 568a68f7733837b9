//! Channel of updates on one flow, from the monitor of the programs to the task of the flow.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use snisplit_common::abi::packet::FlowState;
use tokio::sync::Notify;

use crate::engine::{FlowEnd, Peer};

/// The last update on a flow. One task may wait for it.
#[derive(Debug, Default)]
pub(super) struct FlowWatch {
    /// Index in [`FlowUpdate::ALL`].
    last: AtomicU8,
    notify: Notify,
    /// Bytes delivered up and down, once the flow has ended.
    delivered: OnceLock<(u64, u64)>,
}

/// An update on a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowUpdate {
    /// The programs changed the state of the flow.
    State(FlowState),
    /// A peer has sent nothing for too long.
    PeerDead(Peer),
    /// An operator asked for a reset (`snisplit flows reset`).
    ResetRequested,
}

impl FlowUpdate {
    /// All updates, in the order in which a flow may have them.
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

    /// Returns this update if it decides on the takeover.
    pub(super) fn takeover_decided(self) -> Option<Self> {
        let is_decided = match self {
            Self::State(state) => state as u64 >= FlowState::Offloaded as u64,
            Self::PeerDead(_) | Self::ResetRequested => true,
        };
        is_decided.then_some(self)
    }

    /// The end of an offloaded flow, and whether both peers know of it, so that they need no reset.
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
    /// Publishes an update. Has no effect behind a later one: a poll may be older than an event.
    pub(super) fn publish(&self, update: FlowUpdate) {
        let rank = update.rank();
        if self.last.fetch_max(rank, Ordering::AcqRel) < rank {
            self.notify.notify_one();
        }
    }

    /// Sets the bytes delivered up and down, before the end of the flow is published.
    pub(super) fn set_delivered(&self, up: u64, down: u64) {
        let _already_set = self.delivered.set((up, down));
    }

    pub(super) fn delivered(&self) -> Option<(u64, u64)> {
        self.delivered.get().copied()
    }

    fn last(&self) -> FlowUpdate {
        FlowUpdate::ALL[usize::from(self.last.load(Ordering::Acquire))]
    }

    /// Waits for an update that `select` maps to a value, and returns the value. Cancel-safe.
    pub(super) async fn wait_for<T>(&self, select: impl Fn(FlowUpdate) -> Option<T>) -> T {
        loop {
            if let Some(selected) = select(self.last()) {
                return selected;
            }
            // An update since `last` was read has left a permit (`Notify::notify_one`).
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
            watch.wait_for(FlowUpdate::takeover_decided).await,
            FlowUpdate::State(FlowState::Closed)
        );
        let is_reset = |update| (update == FlowUpdate::ResetRequested).then_some(update);
        let (update, ()) = tokio::join!(watch.wait_for(is_reset), async {
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

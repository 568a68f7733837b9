//! What becomes of one flow: told by whoever listens to the programs, heard by the flow's task.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use snisplit_common::abi::packet::FlowState;
use tokio::sync::Notify;

use super::super::{End, Side};

/// The last news of a flow. One task may wait for them.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// A place in [`News::ALL`].
    last: AtomicU8,
    told: Notify,
    /// Bytes up and down, once the flow has ended.
    delivered: OnceLock<(u64, u64)>,
}

/// What there is to say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// What it has become.
    State(FlowState),
    /// A peer has not been heard for too long.
    Silent(Side),
    /// Somebody wants it cut.
    Cut,
}

impl News {
    /// What comes later in the life of a flow comes later here.
    const ALL: [Self; 10] = [
        Self::State(FlowState::Pending),
        Self::State(FlowState::TakingOver),
        Self::State(FlowState::Offloaded),
        Self::State(FlowState::Fallback),
        Self::State(FlowState::Closed),
        Self::State(FlowState::ClientReset),
        Self::State(FlowState::BackendReset),
        Self::Silent(Side::Client),
        Self::Silent(Side::Backend),
        Self::Cut,
    ];

    fn place(self) -> u8 {
        Self::ALL.iter().position(|news| *news == self).unwrap_or_default() as u8
    }

    /// Whether it is clear whose flow it is.
    pub(super) const fn is_decided(self) -> bool {
        match self {
            Self::State(state) => state as u64 >= FlowState::Offloaded as u64,
            Self::Silent(_) | Self::Cut => true,
        }
    }

    /// How a flow without sockets has ended, and whether its peers know of it.
    pub(super) const fn end(self) -> Option<(End, bool)> {
        match self {
            Self::State(FlowState::Closed) => Some((End::Closed, true)),
            Self::State(FlowState::ClientReset) => Some((End::ClientReset, true)),
            Self::State(FlowState::BackendReset) => Some((End::BackendReset, true)),
            Self::Silent(Side::Client) => Some((End::ClientReset, false)),
            Self::Silent(Side::Backend) => Some((End::BackendReset, false)),
            Self::Cut => Some((End::Cut, false)),
            Self::State(_) => None,
        }
    }
}

impl Story {
    /// News that are older than the last are none: a look may be behind an event.
    pub(super) fn tell(&self, news: News) {
        let place = news.place();
        if self.last.fetch_max(place, Ordering::AcqRel) < place {
            self.told.notify_one();
        }
    }

    /// Bytes up and down, before the end is told.
    pub(super) fn conclude(&self, delivered: (u64, u64)) {
        let _known = self.delivered.set(delivered);
    }

    pub(super) fn delivered(&self) -> Option<(u64, u64)> {
        self.delivered.get().copied()
    }

    fn last(&self) -> News {
        News::ALL[usize::from(self.last.load(Ordering::Acquire))]
    }

    /// Waits until what there is to say `is` so.
    pub(super) async fn wait_for(&self, is: impl Fn(News) -> bool) -> News {
        loop {
            let last = self.last();
            if is(last) {
                return last;
            }
            // What was told since then has left a permit.
            self.told.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_are_heard_whenever_they_are_told_and_never_go_back() {
        let story = Story::default();
        story.tell(News::State(FlowState::Closed));
        story.tell(News::State(FlowState::Offloaded));
        assert_eq!(story.wait_for(News::is_decided).await, News::State(FlowState::Closed));
        let (heard, ()) = tokio::join!(story.wait_for(|news| news == News::Cut), async {
            tokio::task::yield_now().await;
            story.tell(News::Cut);
        });
        assert_eq!(heard.end(), Some((End::Cut, false)));
    }

    #[test]
    fn every_state_has_its_place() {
        for state in FlowState::ALL {
            assert_eq!(u64::from(News::State(state).place()), state as u64);
        }
    }
}

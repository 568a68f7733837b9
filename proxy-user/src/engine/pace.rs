//! Whether a flow is one of small messages, which the kernel forwards better than splice(2) does.
//!
//! The figures are in docs/benchmarks.md: arming costs a short connection more than it gives, and
//! bulk is splice's. So a flow is handed over when it has proved to be neither.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Messages that a flow is judged by, both directions together.
const WINDOW: u32 = 64;
/// Bytes of a message that is small, on average over a window.
const SMALL: u64 = 2_048;

/// The pace of a flow of late.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Directions in the middle of a message or at their end: bytes or an end are in user space.
    held: AtomicU32,
    messages: AtomicU32,
    bytes: AtomicU64,
}

impl Pace {
    /// A message, or the end of a direction, has been taken from its socket.
    pub(super) fn taken(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// All of a message has been given to the other socket. Whether the flow is now one of small
    /// messages, and nothing of it is in user space.
    pub(super) fn given(&self, bytes: usize) -> bool {
        let held_by_the_other = self.held.fetch_sub(1, Ordering::Relaxed) > 1;
        let messages = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if messages < WINDOW {
            return false;
        }
        if total > u64::from(messages) * SMALL {
            self.messages.store(0, Ordering::Relaxed);
            self.bytes.store(0, Ordering::Relaxed);
            return false;
        }
        !held_by_the_other
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, SMALL, WINDOW};

    /// The message, from 1, at which a flow becomes ripe.
    fn ripe_at(messages: impl IntoIterator<Item = u64>) -> Option<usize> {
        let pace = Pace::default();
        let ripe = messages.into_iter().position(|bytes| {
            pace.taken();
            pace.given(bytes as usize)
        });
        ripe.map(|index| index + 1)
    }

    #[test]
    fn small_messages_ripen_a_flow_and_bulk_does_not() {
        let window = WINDOW as usize;
        assert_eq!(ripe_at(vec![64; window - 1]), None);
        assert_eq!(ripe_at(vec![SMALL; window]), Some(window));
        assert_eq!(ripe_at(vec![SMALL + 1; 10 * window]), None);
        let a_page_first = [vec![60_000; 100], vec![64; 2 * window]].concat();
        assert_eq!(ripe_at(a_page_first), Some(3 * window), "judged by whole windows");
    }

    #[test]
    fn a_direction_that_holds_something_or_has_ended_keeps_the_flow() {
        let pace = Pace::default();
        pace.taken();
        let ripe = |_| {
            pace.taken();
            pace.given(1)
        };
        assert!(!(0..1_000).any(ripe));
        assert!(pace.given(1), "the other direction has passed its message on");
    }
}

//! When a flow is no longer young, and whether it is one of small messages, which the kernel forwards better than
//! splice(2) does.
//!
//! The figures are in docs/benchmarks.md: arming costs a short connection more than it gives, and
//! bulk is splice's. So a flow is handed over when it has proved to be neither.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Messages that a flow is judged by, both directions together.
const WINDOW: u32 = 64;
/// Bytes of a message that is small, on average over a window.
const SMALL: u64 = 2_048;

/// What the messages of a flow are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

/// The pace of a flow of late.
#[derive(Debug)]
pub(super) struct Pace {
    /// Whether a flow of large messages is ripe too.
    is_any_ripe: bool,
    /// Directions in the middle of a message or at their end: bytes or an end are in user space.
    held: AtomicU32,
    messages: AtomicU32,
    bytes: AtomicU64,
}

impl Pace {
    /// Waits for small messages.
    pub(super) fn of_small() -> Self {
        Self::new(false)
    }

    /// Waits for a window to be over, whatever it brings.
    pub(super) fn of_any() -> Self {
        Self::new(true)
    }

    fn new(is_any_ripe: bool) -> Self {
        let (held, messages, bytes) = Default::default();
        Self { is_any_ripe, held, messages, bytes }
    }

    /// A message, or the end of a direction, has been taken from its socket.
    pub(super) fn taken(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// All of a message has been given to the other socket. What the flow is like, if it is ripe now and
    /// nothing of it is in user space.
    pub(super) fn given(&self, bytes: usize) -> Option<Size> {
        let held_by_the_other = self.held.fetch_sub(1, Ordering::Relaxed) > 1;
        let messages = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if messages < WINDOW {
            return None;
        }
        let is_small = total <= u64::from(messages) * SMALL;
        if !is_small && !self.is_any_ripe {
            self.messages.store(0, Ordering::Relaxed);
            self.bytes.store(0, Ordering::Relaxed);
            return None;
        }
        let size = if is_small { Size::Small } else { Size::Large };
        (!held_by_the_other).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, SMALL, Size, WINDOW};

    /// The message, from 1, at which a flow becomes ripe, and as what.
    fn ripe(pace: &Pace, messages: impl IntoIterator<Item = u64>) -> Option<(usize, Size)> {
        (1..).zip(messages).find_map(|(index, bytes)| {
            pace.taken();
            pace.given(bytes as usize).map(|size| (index, size))
        })
    }

    /// The message at which a flow proves to be one of small messages.
    fn ripe_at(messages: impl IntoIterator<Item = u64>) -> Option<usize> {
        ripe(&Pace::of_small(), messages).map(|(index, size)| {
            assert_eq!(size, Size::Small);
            index
        })
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
        for pace in [Pace::of_small(), Pace::of_any()] {
            pace.taken();
            assert_eq!(ripe(&pace, [1; 1_000]), None);
            assert_eq!(
                pace.given(1),
                Some(Size::Small),
                "the other direction has passed its message on"
            );
        }
    }

    #[test]
    fn whatever_a_window_brings_the_beginnings_are_over() {
        let window = WINDOW as usize;
        let young = |bytes| ripe(&Pace::of_any(), vec![bytes; 2 * window]);
        assert_eq!(young(SMALL), Some((window, Size::Small)));
        assert_eq!(young(SMALL + 1), Some((window, Size::Large)));
    }
}

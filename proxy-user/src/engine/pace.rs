//! When a flow is no longer young, and whether it is a talk, which the kernel forwards better than splice(2)
//! does.
//!
//! The figures are in docs/benchmarks.md: arming costs a short connection more than it gives, and
//! bulk is splice's. So a flow is handed over when it has proved to be neither.

use std::sync::{Mutex, MutexGuard, PoisonError};

use snisplit_common::abi::MAX_EXCHANGE_BYTES;

use super::Side;

/// Messages that a flow is judged by, both directions together.
const WINDOW: u32 = 32;
/// Bytes of a message that is small, on average over a window.
const SMALL: u64 = 2_048;

/// What a flow is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of small messages, or of larger ones by turns.
    Talk,
    Bulk,
}

/// The pace of a flow of late.
#[derive(Debug)]
pub(super) struct Pace {
    /// Whether a flow of bulk is ripe too.
    is_any_ripe: bool,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    /// Directions in the middle of a message or at their end: bytes or an end are in user space.
    held: u32,
    messages: u32,
    /// How often another side spoke than before.
    turns: u32,
    spoke: Option<Side>,
    /// From the client, and from the back end.
    bytes: [u64; 2],
}

impl Pace {
    /// Waits for a talk.
    pub(super) fn of_talk() -> Self {
        Self { is_any_ripe: false, window: Mutex::default() }
    }

    /// Waits for a window to be over, whatever it brings.
    pub(super) fn of_any() -> Self {
        Self { is_any_ripe: true, window: Mutex::default() }
    }

    /// A message, or the end of a direction, has been taken from its socket.
    pub(super) fn taken(&self) {
        self.window().held += 1;
    }

    /// All of a message of this side has been given to the other one's socket. What the flow is like, if it is
    /// ripe now and nothing of it is in user space.
    pub(super) fn given(&self, side: Side, bytes: usize) -> Option<Kind> {
        let mut window = self.window();
        window.held -= 1;
        window.add(side, bytes as u64);
        if window.messages < WINDOW {
            return None;
        }
        let kind = window.kind();
        if kind == Kind::Bulk && !self.is_any_ripe {
            let Window { held, spoke, .. } = *window;
            *window = Window { held, spoke, ..Window::default() };
            return None;
        }
        (window.held == 0).then_some(kind)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn add(&mut self, side: Side, bytes: u64) {
        self.messages = self.messages.saturating_add(1);
        self.turns = self.turns.saturating_add(u32::from(self.spoke != Some(side)));
        self.spoke = Some(side);
        self.bytes[side as usize] += bytes;
    }

    fn kind(&self) -> Kind {
        let [up, down] = self.bytes;
        let are_small = up + down <= u64::from(self.messages) * SMALL;
        // Every other one is a direction's own.
        let by_turns = up.max(down) <= u64::from(self.turns.div_ceil(2)) * MAX_EXCHANGE_BYTES;
        if are_small || by_turns { Kind::Talk } else { Kind::Bulk }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, MAX_EXCHANGE_BYTES, Pace, SMALL, Side, WINDOW};

    const MESSAGES: usize = WINDOW as usize;

    /// The message, from 1, at which a flow becomes ripe, and as what.
    fn ripe(pace: &Pace, messages: impl IntoIterator<Item = (Side, u64)>) -> Option<(usize, Kind)> {
        (1..).zip(messages).find_map(|(index, (side, bytes))| {
            pace.taken();
            pace.given(side, bytes as usize).map(|kind| (index, kind))
        })
    }

    fn down(sizes: impl IntoIterator<Item = u64>) -> Vec<(Side, u64)> {
        sizes.into_iter().map(|size| (Side::Backend, size)).collect()
    }

    /// Questions and answers, each answer in so many messages.
    fn exchanges(question: u64, answer: u64, pieces: usize) -> Vec<(Side, u64)> {
        let one = [vec![(Side::Client, question)], vec![(Side::Backend, answer); pieces]].concat();
        one.into_iter().cycle().take(3 * MESSAGES).collect()
    }

    /// The message at which a flow proves to be a talk.
    fn ripe_at(messages: impl IntoIterator<Item = (Side, u64)>) -> Option<usize> {
        ripe(&Pace::of_talk(), messages).map(|(index, kind)| {
            assert_eq!(kind, Kind::Talk);
            index
        })
    }

    #[test]
    fn small_messages_ripen_a_flow_and_bulk_does_not() {
        assert_eq!(ripe_at(down(vec![64; MESSAGES - 1])), None);
        assert_eq!(ripe_at(down(vec![SMALL; MESSAGES])), Some(MESSAGES));
        assert_eq!(ripe_at(down(vec![SMALL + 1; 10 * MESSAGES])), None);
        let a_page_first = [vec![60_000; MESSAGES * 3 / 2], vec![64; 2 * MESSAGES]].concat();
        assert_eq!(ripe_at(down(a_page_first)), Some(3 * MESSAGES), "judged by whole windows");
    }

    #[test]
    fn larger_messages_ripen_it_where_both_sides_talk_by_turns() {
        assert_eq!(ripe_at(exchanges(MAX_EXCHANGE_BYTES, MAX_EXCHANGE_BYTES, 1)), Some(MESSAGES));
        assert_eq!(ripe_at(exchanges(500, MAX_EXCHANGE_BYTES, 1)), Some(MESSAGES));
        assert_eq!(ripe_at(exchanges(500, MAX_EXCHANGE_BYTES / 3, 3)), Some(MESSAGES));
        assert_eq!(ripe_at(exchanges(500, MAX_EXCHANGE_BYTES + 1, 1)), None, "each side is judged");
        assert_eq!(ripe_at(exchanges(MAX_EXCHANGE_BYTES + 1, 500, 1)), None);
        assert_eq!(ripe_at(exchanges(500, MAX_EXCHANGE_BYTES, 15)), None, "acknowledged bulk");
    }

    #[test]
    fn a_direction_that_holds_something_or_has_ended_keeps_the_flow() {
        for pace in [Pace::of_talk(), Pace::of_any()] {
            pace.taken();
            assert_eq!(ripe(&pace, down([1; 1_000])), None);
            assert_eq!(
                pace.given(Side::Client, 1),
                Some(Kind::Talk),
                "the other direction has passed its message on"
            );
        }
    }

    #[test]
    fn whatever_a_window_brings_the_beginnings_are_over() {
        let young = |bytes| ripe(&Pace::of_any(), down(vec![bytes; 2 * MESSAGES]));
        assert_eq!(young(SMALL), Some((MESSAGES, Kind::Talk)));
        assert_eq!(young(SMALL + 1), Some((MESSAGES, Kind::Bulk)));
    }
}

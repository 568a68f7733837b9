//! When a flow is no longer young, and whether it is a talk, which the kernel forwards better than splice(2)
//! does.
//!
//! The figures are in docs/benchmarks.md: arming costs a short connection more than it gives, and
//! bulk is splice's. So a flow is handed over when it has proved to be neither.

use std::sync::{Mutex, MutexGuard, PoisonError};

use snisplit_common::abi::sockmap::MAX_EXCHANGE_BYTES;

use super::Peer;

/// Messages that a flow is judged by, both directions together.
const SAMPLE_MESSAGES: u32 = 32;
/// Bytes of a message that is small, on average over a window.
const SMALL_MESSAGE_LEN: u64 = 2_048;

/// What a flow is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrafficClass {
    /// Of small messages, or of larger ones by turns.
    Interactive,
    Bulk,
}

/// The pace of a flow of late.
#[derive(Debug)]
pub(super) struct TrafficClassifier {
    /// Whether a flow of bulk is ripe too.
    accepts_bulk: bool,
    sample: Mutex<Sample>,
}

#[derive(Debug, Default)]
struct Sample {
    /// Directions in the middle of a message or at their end: bytes or an end are in user space.
    pending: u32,
    messages: u32,
    /// How often another side spoke than before.
    direction_changes: u32,
    last_sender: Option<Peer>,
    /// From the client, and from the back end.
    bytes: [u64; 2],
}

impl TrafficClassifier {
    /// Waits for a talk.
    pub(super) fn for_interactive() -> Self {
        Self { accepts_bulk: false, sample: Mutex::default() }
    }

    /// Waits for a window to be over, whatever it brings.
    pub(super) fn for_any() -> Self {
        Self { accepts_bulk: true, sample: Mutex::default() }
    }

    /// A message, or the end of a direction, has been taken from its socket.
    pub(super) fn on_received(&self) {
        self.sample().pending += 1;
    }

    /// All of a message of this side has been given to the other one's socket. What the flow is like, if it is
    /// ripe now and nothing of it is in user space.
    pub(super) fn on_sent(&self, peer: Peer, bytes: usize) -> Option<TrafficClass> {
        let mut sample = self.sample();
        sample.pending -= 1;
        sample.add(peer, bytes as u64);
        if sample.messages < SAMPLE_MESSAGES {
            return None;
        }
        let class = sample.class();
        if class == TrafficClass::Bulk && !self.accepts_bulk {
            let Sample { pending, last_sender, .. } = *sample;
            *sample = Sample { pending, last_sender, ..Sample::default() };
            return None;
        }
        (sample.pending == 0).then_some(class)
    }

    fn sample(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn add(&mut self, peer: Peer, bytes: u64) {
        self.messages = self.messages.saturating_add(1);
        self.direction_changes =
            self.direction_changes.saturating_add(u32::from(self.last_sender != Some(peer)));
        self.last_sender = Some(peer);
        self.bytes[peer as usize] += bytes;
    }

    fn class(&self) -> TrafficClass {
        let [up, down] = self.bytes;
        let is_small = up + down <= u64::from(self.messages) * SMALL_MESSAGE_LEN;
        // Every other one is a direction's own.
        let is_alternating =
            up.max(down) <= u64::from(self.direction_changes.div_ceil(2)) * MAX_EXCHANGE_BYTES;
        if is_small || is_alternating { TrafficClass::Interactive } else { TrafficClass::Bulk }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        MAX_EXCHANGE_BYTES, Peer, SAMPLE_MESSAGES, SMALL_MESSAGE_LEN, TrafficClass,
        TrafficClassifier,
    };

    const MESSAGES: usize = SAMPLE_MESSAGES as usize;

    /// The message, from 1, at which a flow becomes ripe, and as what.
    fn classified_at(
        classifier: &TrafficClassifier,
        messages: impl IntoIterator<Item = (Peer, u64)>,
    ) -> Option<(usize, TrafficClass)> {
        (1..).zip(messages).find_map(|(index, (side, bytes))| {
            classifier.on_received();
            classifier.on_sent(side, bytes as usize).map(|class| (index, class))
        })
    }

    fn down(sizes: impl IntoIterator<Item = u64>) -> Vec<(Peer, u64)> {
        sizes.into_iter().map(|size| (Peer::Backend, size)).collect()
    }

    /// Questions and answers, each answer in so many messages.
    fn exchanges(request: u64, response: u64, segments: usize) -> Vec<(Peer, u64)> {
        let one =
            [vec![(Peer::Client, request)], vec![(Peer::Backend, response); segments]].concat();
        one.into_iter().cycle().take(3 * MESSAGES).collect()
    }

    /// The message at which a flow proves to be a talk.
    fn interactive_at(messages: impl IntoIterator<Item = (Peer, u64)>) -> Option<usize> {
        classified_at(&TrafficClassifier::for_interactive(), messages).map(|(index, class)| {
            assert_eq!(class, TrafficClass::Interactive);
            index
        })
    }

    #[test]
    fn small_messages_are_interactive_and_bulk_is_not() {
        assert_eq!(interactive_at(down(vec![64; MESSAGES - 1])), None);
        assert_eq!(interactive_at(down(vec![SMALL_MESSAGE_LEN; MESSAGES])), Some(MESSAGES));
        assert_eq!(interactive_at(down(vec![SMALL_MESSAGE_LEN + 1; 10 * MESSAGES])), None);
        let bulk_first = [vec![60_000; MESSAGES * 3 / 2], vec![64; 2 * MESSAGES]].concat();
        assert_eq!(interactive_at(down(bulk_first)), Some(3 * MESSAGES), "judged by whole windows");
    }

    #[test]
    fn larger_messages_are_interactive_where_both_peers_alternate() {
        assert_eq!(
            interactive_at(exchanges(MAX_EXCHANGE_BYTES, MAX_EXCHANGE_BYTES, 1)),
            Some(MESSAGES)
        );
        assert_eq!(interactive_at(exchanges(500, MAX_EXCHANGE_BYTES, 1)), Some(MESSAGES));
        assert_eq!(interactive_at(exchanges(500, MAX_EXCHANGE_BYTES / 3, 3)), Some(MESSAGES));
        assert_eq!(
            interactive_at(exchanges(500, MAX_EXCHANGE_BYTES + 1, 1)),
            None,
            "each side is judged"
        );
        assert_eq!(interactive_at(exchanges(MAX_EXCHANGE_BYTES + 1, 500, 1)), None);
        assert_eq!(
            interactive_at(exchanges(500, MAX_EXCHANGE_BYTES, 15)),
            None,
            "acknowledged bulk"
        );
    }

    #[test]
    fn a_direction_with_pending_data_or_at_its_end_delays_classification() {
        for classifier in [TrafficClassifier::for_interactive(), TrafficClassifier::for_any()] {
            classifier.on_received();
            assert_eq!(classified_at(&classifier, down([1; 1_000])), None);
            assert_eq!(
                classifier.on_sent(Peer::Client, 1),
                Some(TrafficClass::Interactive),
                "the other direction has passed its message on"
            );
        }
    }

    #[test]
    fn any_class_ends_the_first_sample() {
        let first_sample =
            |bytes| classified_at(&TrafficClassifier::for_any(), down(vec![bytes; 2 * MESSAGES]));
        assert_eq!(first_sample(SMALL_MESSAGE_LEN), Some((MESSAGES, TrafficClass::Interactive)));
        assert_eq!(first_sample(SMALL_MESSAGE_LEN + 1), Some((MESSAGES, TrafficClass::Bulk)));
    }
}

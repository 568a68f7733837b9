//! Traffic class of a flow, which decides whether the sockmap engine should carry it.
//!
//! To insert a flow in a socket map costs a short connection more than it gains, and splice(2) moves
//! bulk faster than the kernel redirects it. So `engine = "auto"` hands a flow over to sockmap once a
//! sample of its messages shows that it is neither (docs/concepts/engines.md).

use std::sync::{Mutex, MutexGuard, PoisonError};

use snisplit_common::abi::sockmap::MAX_EXCHANGE_BYTES;

use super::Peer;

/// Messages in a sample, both directions together. A message is what one read returned.
const SAMPLE_MESSAGES: u32 = 32;
/// Average bytes up to which the messages of a sample are small.
const SMALL_MESSAGE_LEN: u64 = 2_048;

/// Class of the traffic of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrafficClass {
    /// Small messages, or larger ones that alternate between the peers.
    Interactive,
    /// Everything else.
    Bulk,
}

/// Classifies a flow by samples of its messages.
#[derive(Debug)]
pub(super) struct TrafficClassifier {
    /// Whether a sample of bulk classifies the flow too, and does not start the next sample.
    accepts_bulk: bool,
    sample: Mutex<Sample>,
}

#[derive(Debug, Default)]
struct Sample {
    /// Messages and ends of stream that were read from one socket and not yet passed to the other.
    pending: u32,
    messages: u32,
    /// Messages whose sender was not the sender of the message before.
    direction_changes: u32,
    last_sender: Option<Peer>,
    /// Bytes from the client and from the back end.
    bytes: [u64; 2],
}

impl TrafficClassifier {
    /// Takes samples until one is interactive.
    pub(super) fn for_interactive() -> Self {
        Self { accepts_bulk: false, sample: Mutex::default() }
    }

    /// Takes one sample, whatever its class.
    pub(super) fn for_any() -> Self {
        Self { accepts_bulk: true, sample: Mutex::default() }
    }

    /// Records that a message or an end of stream was read.
    pub(super) fn on_received(&self) {
        self.sample().pending += 1;
    }

    /// Records that a message from `peer` was written in full to the other socket.
    ///
    /// Returns the class once the sample is complete and no byte of the flow is in user space.
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
        // Half of the changes, rounded up, are to one direction.
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

    /// The number of the message, from 1, that classifies a flow, and the class.
    fn classified_at(
        classifier: &TrafficClassifier,
        messages: impl IntoIterator<Item = (Peer, u64)>,
    ) -> Option<(usize, TrafficClass)> {
        (1..).zip(messages).find_map(|(index, (peer, bytes))| {
            classifier.on_received();
            classifier.on_sent(peer, bytes as usize).map(|class| (index, class))
        })
    }

    fn down(sizes: impl IntoIterator<Item = u64>) -> Vec<(Peer, u64)> {
        sizes.into_iter().map(|size| (Peer::Backend, size)).collect()
    }

    /// Requests and responses, each response in this number of messages.
    fn exchanges(request: u64, response: u64, messages: usize) -> Vec<(Peer, u64)> {
        let one =
            [vec![(Peer::Client, request)], vec![(Peer::Backend, response); messages]].concat();
        one.into_iter().cycle().take(3 * MESSAGES).collect()
    }

    /// The number of the message that shows a flow to be interactive.
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
        assert_eq!(
            interactive_at(down(bulk_first)),
            Some(3 * MESSAGES),
            "a sample starts where the last one ended"
        );
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
            "each direction counts by itself"
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

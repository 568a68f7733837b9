//! When to order a certificate: pure in the clock, the certificate, the CA's wish and what failed.
//!
//! A CA that offers renewal information says when (RFC 9773); else with a third of the lifetime left.
//! Failures back off for each certificate within what CAs bear: Let's Encrypt allows five failed
//! validations of a name in an hour, and here at most four fall into one.

use std::time::{Duration, SystemTime};

/// The pause after the first failure of a kind, and the longest.
const REFUSED: (Duration, Duration) = (minutes(2), minutes(24 * 60));
const UNREACHABLE: (Duration, Duration) = (Duration::from_secs(5), minutes(10));
/// Each pause is so many times the one before.
const REFUSED_GROWTH: u32 = 4;
const UNREACHABLE_GROWTH: u32 = 2;

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// What is known of one certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Situation {
    /// `notBefore` and `notAfter` of the one that is there.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// The CA's suggested window, RFC 9773 §4.2.
    pub window: Option<(SystemTime, SystemTime)>,
    /// What failed since the last success.
    pub failure: Option<Failure>,
    /// A number from 0 to 1 that stays the same for this certificate, so that many do not come at
    /// once.
    pub jitter: f64,
}

/// Orders that failed, in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failure {
    /// How many.
    pub count: u32,
    /// When the last one did.
    pub at: SystemTime,
    /// What the CA said about it.
    pub kind: FailureKind,
    /// `Retry-After` of the CA's answer.
    pub retry_after: Option<SystemTime>,
}

/// How an order fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The CA could not be asked, or heard nothing but a nonce: no limit of its counts that.
    Unreachable,
    /// The CA said no.
    Refused,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until then.
    Wait(SystemTime),
    /// Order now.
    Order,
}

impl Situation {
    /// What to do now.
    pub fn next(&self, now: SystemTime) -> Next {
        let due = self.due();
        if now < due { Next::Wait(due) } else { Next::Order }
    }

    /// When the next order is due; in the past if one is overdue.
    pub fn due(&self) -> SystemTime {
        let wanted = self.validity.map_or(SystemTime::UNIX_EPOCH, |(from, until)| {
            let lifetime = until.duration_since(from).unwrap_or_default();
            match self.window {
                // Not at once, whatever the CA says: a wish that is always over would be a storm.
                Some((start, end)) => {
                    let within = end.duration_since(start).unwrap_or_default();
                    (start + within.mul_f64(self.jitter)).max(from + lifetime / 100)
                }
                // A third of the lifetime before its end, or up to a thirtieth earlier.
                None => from + lifetime.mul_f64(2.0 / 3.0 - self.jitter / 30.0),
            }
        });
        match self.failure {
            Some(failure) => wanted.max(failure.over(self.jitter)),
            None => wanted,
        }
    }
}

impl Failure {
    /// When the pause after it is over.
    fn over(&self, jitter: f64) -> SystemTime {
        let ((first, longest), growth) = match self.kind {
            FailureKind::Unreachable => (UNREACHABLE, UNREACHABLE_GROWTH),
            FailureKind::Refused => (REFUSED, REFUSED_GROWTH),
        };
        let factor = growth.saturating_pow(self.count.saturating_sub(1));
        let pause = first.saturating_mul(factor).min(longest).mul_f64(1.0 + jitter / 4.0);
        let over = self.at + pause;
        self.retry_after.map_or(over, |asked| asked.max(over))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = minutes(24 * 60);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn days(n: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * n
    }

    fn refused(count: u32, now: SystemTime) -> Option<Failure> {
        Some(Failure { count, at: now, kind: FailureKind::Refused, retry_after: None })
    }

    #[test]
    fn without_a_certificate_at_once() {
        assert_eq!(Situation::default().next(days(20_000)), Next::Order);
    }

    #[test]
    fn with_a_third_of_the_lifetime_left() {
        let mut of_90 =
            Situation { validity: Some((days(100), days(190))), ..Situation::default() };
        assert_eq!(of_90.next(days(159)), Next::Wait(days(160)));
        assert_eq!(of_90.next(days(160)), Next::Order);
        of_90.jitter = 1.0;
        assert_eq!(of_90.due(), days(157));
        let of_6 = Situation { validity: Some((days(0), days(6))), ..Situation::default() };
        assert_eq!(of_6.due(), days(4));
    }

    #[test]
    fn the_ca_knows_better() {
        let mut wish = Situation {
            validity: Some((days(100), days(190))),
            window: Some((days(120), days(122))),
            jitter: 0.5,
            ..Situation::default()
        };
        assert_eq!(wish.due(), days(121));
        // A window in the past: a certificate that is to be revoked (RFC 9773 §4.2).
        wish.window = Some((days(99), days(99)));
        assert_eq!(wish.next(days(101)), Next::Order);
        assert_eq!(wish.due(), days(100) + DAY * 9 / 10, "but not as fast as it is issued");
        wish.window = Some((days(130), days(129)));
        assert_eq!(wish.due(), days(130), "an inverted window is its start");
    }

    #[test]
    fn at_most_four_refusals_fall_into_any_hour() {
        for jitter in [0.0, 0.5, 1.0] {
            let mut situation = Situation { jitter, ..Situation::default() };
            let mut tries = vec![at(0)];
            for count in 1..30 {
                situation.failure = refused(count, tries[tries.len() - 1]);
                tries.push(situation.due());
            }
            for first in &tries {
                let hour = *first..*first + minutes(60);
                assert!(tries.iter().filter(|at| hour.contains(at)).count() <= 4, "{tries:?}");
            }
            let last = tries[29].duration_since(tries[28]).unwrap();
            assert!(last >= DAY && last <= DAY * 2, "{last:?}");
        }
    }

    #[test]
    fn an_unreachable_ca_is_tried_again_soon() {
        let failure = |count| {
            let kind = FailureKind::Unreachable;
            Some(Failure { count, at: at(0), kind, retry_after: None })
        };
        let due = |count| Situation { failure: failure(count), ..Situation::default() }.due();
        assert_eq!([due(1), due(2), due(3), due(40)], [at(5), at(10), at(20), at(600)]);
    }

    #[test]
    fn retry_after_is_obeyed() {
        let mut situation = Situation { failure: refused(1, at(0)), ..Situation::default() };
        situation.failure.as_mut().unwrap().retry_after = Some(days(1));
        assert_eq!(situation.due(), days(1));
        situation.failure.as_mut().unwrap().retry_after = Some(at(1));
        assert_eq!(situation.due(), at(120), "never sooner than our own pause");
    }

    #[test]
    fn a_failure_does_not_bring_the_next_order_forward() {
        let mut situation =
            Situation { validity: Some((days(0), days(90))), ..Situation::default() };
        situation.failure = refused(1, days(1));
        assert_eq!(situation.due(), days(60));
    }
}

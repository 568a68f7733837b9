//! Time of the next order of a certificate, from the time, the certificate, the CA's renewal information and
//! earlier failures.
//!
//! A CA with renewal information (ARI, RFC 9773) says when to renew. Without it, the agent renews when a
//! third of the lifetime is left. Failed orders back off for each certificate. Let's Encrypt allows five
//! failed validations of a name in an hour; this schedule has at most four.

use std::time::{Duration, SystemTime};

/// Backoff after the first failure of a kind, and the longest one.
const REJECTED_BACKOFF: (Duration, Duration) = (minutes(2), minutes(24 * 60));
const UNREACHABLE_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), minutes(10));
/// Growth of the backoff with each further failure.
const REJECTED_BACKOFF_FACTOR: u32 = 4;
const UNREACHABLE_BACKOFF_FACTOR: u32 = 2;

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// State of one certificate that decides when to order.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenewalInput {
    /// `notBefore` and `notAfter` of the present certificate. `None`: there is none.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Window that the CA suggests (RFC 9773 §4.2).
    pub suggested_window: Option<(SystemTime, SystemTime)>,
    /// Failed orders since the last success.
    pub failure: Option<OrderFailure>,
    /// Number from 0 to 1 that is constant for this certificate, so that the orders of many certificates
    /// spread over time.
    pub jitter: f64,
}

/// Consecutive failed orders.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OrderFailure {
    /// Number of failed orders.
    pub count: u32,
    /// Time of the last failure.
    pub failed_at: SystemTime,
    /// Kind of the last failure.
    pub kind: FailureKind,
    /// Time of `Retry-After` in the CA's answer.
    pub retry_after: Option<SystemTime>,
}

/// Kind of failure of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The CA was not reachable, or got no request except for a nonce. Its rate limits do not count this.
    Unreachable,
    /// The CA rejected the order.
    Rejected,
}

/// Next step for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalAction {
    /// Wait until this time.
    Wait(SystemTime),
    /// Order now.
    Order,
}

impl RenewalInput {
    /// Returns the next step.
    pub fn action(&self, now: SystemTime) -> RenewalAction {
        let due = self.due_at();
        if now < due { RenewalAction::Wait(due) } else { RenewalAction::Order }
    }

    /// Returns the time of the next order. It is in the past if the order is overdue.
    pub fn due_at(&self) -> SystemTime {
        let scheduled = self.validity.map_or(SystemTime::UNIX_EPOCH, |(from, until)| {
            let lifetime = until.duration_since(from).unwrap_or_default();
            match self.suggested_window {
                // At least a hundredth of the lifetime after issuance: a window that is always in the past
                // would cause continuous orders.
                Some((start, end)) => {
                    let window_length = end.duration_since(start).unwrap_or_default();
                    (start + window_length.mul_f64(self.jitter)).max(from + lifetime / 100)
                }
                // At two thirds of the lifetime, or up to a thirtieth of it earlier.
                None => from + lifetime.mul_f64(2.0 / 3.0 - self.jitter / 30.0),
            }
        });
        match self.failure {
            Some(failure) => scheduled.max(failure.retry_at(self.jitter)),
            None => scheduled,
        }
    }
}

impl OrderFailure {
    /// Returns the end of the backoff.
    fn retry_at(&self, jitter: f64) -> SystemTime {
        let ((initial_delay, max_delay), growth_factor) = match self.kind {
            FailureKind::Unreachable => (UNREACHABLE_BACKOFF, UNREACHABLE_BACKOFF_FACTOR),
            FailureKind::Rejected => (REJECTED_BACKOFF, REJECTED_BACKOFF_FACTOR),
        };
        let multiplier = growth_factor.saturating_pow(self.count.saturating_sub(1));
        let delay =
            initial_delay.saturating_mul(multiplier).min(max_delay).mul_f64(1.0 + jitter / 4.0);
        let retry_at = self.failed_at + delay;
        self.retry_after.map_or(retry_at, |requested| requested.max(retry_at))
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

    fn rejected(count: u32, now: SystemTime) -> Option<OrderFailure> {
        Some(OrderFailure { count, failed_at: now, kind: FailureKind::Rejected, retry_after: None })
    }

    #[test]
    fn a_missing_certificate_is_ordered_at_once() {
        assert_eq!(RenewalInput::default().action(days(20_000)), RenewalAction::Order);
    }

    #[test]
    fn renewal_is_due_with_a_third_of_the_lifetime_left() {
        let mut ninety_days =
            RenewalInput { validity: Some((days(100), days(190))), ..RenewalInput::default() };
        assert_eq!(ninety_days.action(days(159)), RenewalAction::Wait(days(160)));
        assert_eq!(ninety_days.action(days(160)), RenewalAction::Order);
        ninety_days.jitter = 1.0;
        assert_eq!(ninety_days.due_at(), days(157));
        let six_days =
            RenewalInput { validity: Some((days(0), days(6))), ..RenewalInput::default() };
        assert_eq!(six_days.due_at(), days(4));
    }

    #[test]
    fn renewal_information_overrides_the_default() {
        let mut input = RenewalInput {
            validity: Some((days(100), days(190))),
            suggested_window: Some((days(120), days(122))),
            jitter: 0.5,
            ..RenewalInput::default()
        };
        assert_eq!(input.due_at(), days(121));
        // A window in the past: the CA will revoke the certificate (RFC 9773 §4.2).
        input.suggested_window = Some((days(99), days(99)));
        assert_eq!(input.action(days(101)), RenewalAction::Order);
        assert_eq!(input.due_at(), days(100) + DAY * 9 / 10, "not right after issuance");
        input.suggested_window = Some((days(130), days(129)));
        assert_eq!(input.due_at(), days(130), "an inverted window is its start");
    }

    #[test]
    fn at_most_four_rejections_fall_into_any_hour() {
        for jitter in [0.0, 0.5, 1.0] {
            let mut situation = RenewalInput { jitter, ..RenewalInput::default() };
            let mut tries = vec![at(0)];
            for count in 1..30 {
                situation.failure = rejected(count, tries[tries.len() - 1]);
                tries.push(situation.due_at());
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
            Some(OrderFailure { count, failed_at: at(0), kind, retry_after: None })
        };
        let due =
            |count| RenewalInput { failure: failure(count), ..RenewalInput::default() }.due_at();
        assert_eq!([due(1), due(2), due(3), due(40)], [at(5), at(10), at(20), at(600)]);
    }

    #[test]
    fn retry_after_is_obeyed() {
        let mut situation = RenewalInput { failure: rejected(1, at(0)), ..RenewalInput::default() };
        situation.failure.as_mut().unwrap().retry_after = Some(days(1));
        assert_eq!(situation.due_at(), days(1));
        situation.failure.as_mut().unwrap().retry_after = Some(at(1));
        assert_eq!(situation.due_at(), at(120), "never before the end of the backoff");
    }

    #[test]
    fn a_failure_does_not_bring_the_next_order_forward() {
        let mut situation =
            RenewalInput { validity: Some((days(0), days(90))), ..RenewalInput::default() };
        situation.failure = rejected(1, days(1));
        assert_eq!(situation.due_at(), days(60));
    }
}

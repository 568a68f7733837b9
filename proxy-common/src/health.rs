//! Health of a back end, from the results of connects and of health checks.
//!
//! Time is an argument: `now` is the time since any fixed instant.

use core::time::Duration;

/// Number of consecutive failed connects that eject a back end.
pub const CONSECUTIVE_FAILURES: u32 = 3;
/// Duration of the first ejection. Each further one in a row takes twice as long.
pub const BASE_EJECTION_TIME: Duration = Duration::from_secs(10);
/// Longest duration of an ejection.
pub const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);
/// Share of its weight that a back end has at the start of a slow start.
const SLOW_START_MIN_FACTOR: f64 = 0.1;

/// Health of one back end.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackendHealth {
    consecutive_failures: u32,
    ejections: u32,
    ejected_until: Option<Duration>,
    /// Number of consecutive checks that contradict the present state.
    contrary_checks: u32,
    is_down_by_check: bool,
    up_since: Option<Duration>,
}

/// Change of the health of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The back end is up again.
    Up,
    /// Health checks consider it down.
    Down,
    /// Failed connects eject it for this duration.
    Eject(Duration),
}

impl BackendHealth {
    /// Whether the back end is up: neither down by checks nor ejected.
    pub fn is_up(&self, now: Duration) -> bool {
        !self.is_down_by_check && self.ejected_until.is_none_or(|until| until <= now)
    }

    /// Returns the share of its weight, from 0 to 1. It is below 1 for the time `slow_start` after the back end
    /// came up.
    pub fn weight_factor(&self, slow_start: Duration, now: Duration) -> f64 {
        match self.up_since {
            Some(since) if now < since + slow_start => {
                let ramp = (now - since).as_secs_f64() / slow_start.as_secs_f64();
                ramp.max(SLOW_START_MIN_FACTOR)
            }
            Some(_) | None => 1.0,
        }
    }

    /// Records the result of a connect. Returns a transition if the health changed.
    pub fn record_connect(&mut self, succeeded: bool, now: Duration) -> Option<Transition> {
        if succeeded {
            self.consecutive_failures = 0;
            let is_transition = self.ejected_until.is_some() && !self.is_down_by_check;
            return is_transition.then(|| self.mark_up(now));
        }
        self.consecutive_failures += 1;
        // After an ejection, one failure ejects the back end again.
        let should_eject =
            self.consecutive_failures >= CONSECUTIVE_FAILURES || self.ejected_until.is_some();
        (should_eject && self.is_up(now)).then(|| {
            let ejection_time = BASE_EJECTION_TIME
                .saturating_mul(1 << self.ejections.min(8))
                .min(MAX_EJECTION_TIME);
            self.ejections += 1;
            self.ejected_until = Some(now + ejection_time);
            Transition::Eject(ejection_time)
        })
    }

    /// Records the result of a health check. Returns a transition if the health changed.
    ///
    /// `rise` consecutive successes make the back end up, also during an ejection. `fall` consecutive failures
    /// make it down.
    pub fn record_check(
        &mut self,
        succeeded: bool,
        rise: u32,
        fall: u32,
        now: Duration,
    ) -> Option<Transition> {
        let is_contrary = match succeeded {
            true => self.is_down_by_check || self.ejected_until.is_some(),
            false => !self.is_down_by_check,
        };
        if !is_contrary {
            self.contrary_checks = 0;
            return None;
        }
        self.contrary_checks += 1;
        if self.contrary_checks < if succeeded { rise } else { fall } {
            return None;
        }
        self.contrary_checks = 0;
        self.is_down_by_check = !succeeded;
        Some(if succeeded { self.mark_up(now) } else { Transition::Down })
    }

    fn mark_up(&mut self, now: Duration) -> Transition {
        *self = Self { up_since: Some(now), ..Self::default() };
        Transition::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn three_consecutive_failures_eject_and_a_success_recovers() {
        let mut health = BackendHealth::default();
        assert_eq!(health.record_connect(false, at(0)), None);
        assert_eq!(health.record_connect(false, at(0)), None);
        assert_eq!(health.record_connect(true, at(0)), None);
        assert_eq!(health.record_connect(false, at(1)), None);
        assert_eq!(health.record_connect(false, at(1)), None);
        assert_eq!(health.record_connect(false, at(1)), Some(Transition::Eject(at(10))));
        assert!(!health.is_up(at(10)) && health.is_up(at(11)));
        assert_eq!(health.record_connect(false, at(5)), None, "ejected already");
        assert_eq!(
            health.record_connect(false, at(11)),
            Some(Transition::Eject(at(20))),
            "on trial"
        );
        assert_eq!(health.record_connect(true, at(31)), Some(Transition::Up));
        assert!(health.is_up(at(31)));
    }

    #[test]
    fn an_ejection_lasts_five_minutes_at_most() {
        let mut health = BackendHealth::default();
        let mut now = at(0);
        let mut longest = at(0);
        for _ in 0..40 {
            if let Some(Transition::Eject(time)) = health.record_connect(false, now) {
                longest = longest.max(time);
                now += time;
            }
        }
        assert_eq!(longest, MAX_EJECTION_TIME);
    }

    #[test]
    fn checks_need_rise_and_fall_in_a_row() {
        let mut health = BackendHealth::default();
        let mut check = |answers: &str| {
            let answers = answers.bytes().map(|answer| answer == b'+');
            let changes = answers.filter_map(|answer| health.record_check(answer, 2, 3, at(7)));
            changes.collect::<Vec<_>>()
        };
        assert_eq!(check("++--+--"), []);
        assert_eq!(check("-"), [Transition::Down]);
        assert_eq!(check("--+-+"), []);
        assert_eq!(check("+"), [Transition::Up]);
        assert!(health.is_up(at(7)));
    }

    #[test]
    fn checks_end_an_ejection() {
        let mut health = BackendHealth::default();
        (0..3).for_each(|_| _ = health.record_connect(false, at(0)));
        assert!(!health.is_up(at(1)));
        assert_eq!(health.record_check(true, 2, 3, at(1)), None);
        assert_eq!(health.record_check(true, 2, 3, at(2)), Some(Transition::Up));
        assert!(health.is_up(at(2)));
        assert_eq!(health.record_connect(false, at(3)), None, "forgiven");
    }

    #[test]
    fn a_recovered_backend_starts_slowly() {
        let mut health = BackendHealth::default();
        assert!(
            (health.weight_factor(at(10), at(0)) - 1.0).abs() < 1e-9,
            "not at the agent's own start"
        );
        for _ in 0..3 {
            health.record_check(false, 1, 3, at(0));
        }
        health.record_check(true, 1, 3, at(100));
        let share = |now| (health.weight_factor(at(10), at(now)) * 10.0).round();
        assert_eq!([share(100), share(105), share(110)], [1.0, 5.0, 10.0]);
    }
}

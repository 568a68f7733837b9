//! Whether a back end is believed to answer: learnt from dialling it and from asking it.
//!
//! Pure in what happened and when; `now` counts from any fixed instant.

use core::time::Duration;

/// Dials in a row that fail before a back end is left alone for a while.
pub const DIAL_FAILURES: u32 = 3;
/// How long at first; each time in a row doubles it.
pub const EJECTION: Duration = Duration::from_secs(10);
/// How long at most.
pub const EJECTION_MAX: Duration = Duration::from_secs(300);
/// The share that a back end which just came up gets at first.
const SLOW_START_LEAST: f64 = 0.1;

/// What is believed of one back end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    dial_failures: u32,
    ejections: u32,
    ejected_until: Option<Duration>,
    /// Checks in a row that contradict what is believed.
    contradictions: u32,
    is_checked_down: bool,
    up_since: Option<Duration>,
}

/// A belief that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It answers again.
    Up,
    /// It does not, by [`Health::checked`].
    Down,
    /// It does not, by [`Health::dialled`], and is left alone for so long.
    Eject(Duration),
}

impl Health {
    /// Whether to dial it before others.
    pub fn is_up(&self, now: Duration) -> bool {
        !self.is_checked_down && self.ejected_until.is_none_or(|until| until <= now)
    }

    /// Its share, 0 to 1: less than all within `slow_start` after it came up.
    pub fn share(&self, slow_start: Duration, now: Duration) -> f64 {
        match self.up_since {
            Some(since) if now < since + slow_start => {
                let passed = (now - since).as_secs_f64() / slow_start.as_secs_f64();
                passed.max(SLOW_START_LEAST)
            }
            Some(_) | None => 1.0,
        }
    }

    /// A connection was tried.
    pub fn dialled(&mut self, answered: bool, now: Duration) -> Option<Change> {
        if answered {
            self.dial_failures = 0;
            let is_news = self.ejected_until.is_some() && !self.is_checked_down;
            return is_news.then(|| self.come_up(now));
        }
        self.dial_failures += 1;
        // After an ejection a single failure is enough: it was on trial.
        let enough = self.dial_failures >= DIAL_FAILURES || self.ejected_until.is_some();
        (enough && self.is_up(now)).then(|| {
            let time = EJECTION.saturating_mul(1 << self.ejections.min(8)).min(EJECTION_MAX);
            self.ejections += 1;
            self.ejected_until = Some(now + time);
            Change::Eject(time)
        })
    }

    /// A check was made. `rise` answers in a row make it up, from an ejection too; `fall` failures
    /// down.
    pub fn checked(
        &mut self,
        answered: bool,
        (rise, fall): (u32, u32),
        now: Duration,
    ) -> Option<Change> {
        let contradicts = match answered {
            true => self.is_checked_down || self.ejected_until.is_some(),
            false => !self.is_checked_down,
        };
        if !contradicts {
            self.contradictions = 0;
            return None;
        }
        self.contradictions += 1;
        if self.contradictions < if answered { rise } else { fall } {
            return None;
        }
        self.contradictions = 0;
        self.is_checked_down = !answered;
        Some(if answered { self.come_up(now) } else { Change::Down })
    }

    fn come_up(&mut self, now: Duration) -> Change {
        *self = Self { up_since: Some(now), ..Self::default() };
        Change::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn three_failures_in_a_row_eject_and_a_success_forgives() {
        let mut health = Health::default();
        assert_eq!(health.dialled(false, at(0)), None);
        assert_eq!(health.dialled(false, at(0)), None);
        assert_eq!(health.dialled(true, at(0)), None);
        assert_eq!(health.dialled(false, at(1)), None);
        assert_eq!(health.dialled(false, at(1)), None);
        assert_eq!(health.dialled(false, at(1)), Some(Change::Eject(at(10))));
        assert!(!health.is_up(at(10)) && health.is_up(at(11)));
        assert_eq!(health.dialled(false, at(5)), None, "ejected already");
        assert_eq!(health.dialled(false, at(11)), Some(Change::Eject(at(20))), "on trial");
        assert_eq!(health.dialled(true, at(31)), Some(Change::Up));
        assert!(health.is_up(at(31)));
    }

    #[test]
    fn an_ejection_lasts_five_minutes_at_most() {
        let mut health = Health::default();
        let mut now = at(0);
        let mut longest = at(0);
        for _ in 0..40 {
            if let Some(Change::Eject(time)) = health.dialled(false, now) {
                longest = longest.max(time);
                now += time;
            }
        }
        assert_eq!(longest, EJECTION_MAX);
    }

    #[test]
    fn checks_need_rise_and_fall_in_a_row() {
        let mut health = Health::default();
        let mut check = |answers: &str| {
            let answers = answers.bytes().map(|answer| answer == b'+');
            let changes = answers.filter_map(|answer| health.checked(answer, (2, 3), at(7)));
            changes.collect::<Vec<_>>()
        };
        assert_eq!(check("++--+--"), []);
        assert_eq!(check("-"), [Change::Down]);
        assert_eq!(check("--+-+"), []);
        assert_eq!(check("+"), [Change::Up]);
        assert!(health.is_up(at(7)));
    }

    #[test]
    fn checks_end_an_ejection() {
        let mut health = Health::default();
        (0..3).for_each(|_| _ = health.dialled(false, at(0)));
        assert!(!health.is_up(at(1)));
        assert_eq!(health.checked(true, (2, 3), at(1)), None);
        assert_eq!(health.checked(true, (2, 3), at(2)), Some(Change::Up));
        assert!(health.is_up(at(2)));
        assert_eq!(health.dialled(false, at(3)), None, "forgiven");
    }

    #[test]
    fn a_fresh_start_is_slow() {
        let mut health = Health::default();
        assert!((health.share(at(10), at(0)) - 1.0).abs() < 1e-9, "not at the agent's own start");
        for _ in 0..3 {
            health.checked(false, (1, 3), at(0));
        }
        health.checked(true, (1, 3), at(100));
        let share = |now| (health.share(at(10), at(now)) * 10.0).round();
        assert_eq!([share(100), share(105), share(110)], [1.0, 5.0, 10.0]);
    }
}

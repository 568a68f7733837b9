//! The clock that the programs read.

use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// By how many nanoseconds this process is ahead of the kernel's own clock: a time namespace has clocks of
/// its own (time_namespaces(7)), and the programs are in none.
static TIMENS_MONOTONIC_OFFSET: LazyLock<i128> = LazyLock::new(|| {
    // Without the file this kernel has no such namespaces.
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    parse_monotonic_offset(&offsets).unwrap_or_default()
});

/// Seconds and nanoseconds, of which the seconds may be negative.
fn parse_monotonic_offset(offsets: &str) -> Option<i128> {
    let entry = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let (seconds, nanoseconds) = entry.trim().split_once(' ')?;
    Some(nanoseconds_of(seconds.parse().ok()?, nanoseconds.trim().parse().ok()?))
}

const fn nanoseconds_of(seconds: i64, nanoseconds: i64) -> i128 {
    seconds as i128 * 1_000_000_000 + nanoseconds as i128
}

/// What the programs' clock says (`bpf_ktime_get_ns`): CLOCK_MONOTONIC outside of any time namespace.
pub(super) fn ktime_now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let nanoseconds = nanoseconds_of(now.tv_sec, now.tv_nsec) - *TIMENS_MONOTONIC_OFFSET;
    Duration::from_nanos(nanoseconds.try_into().unwrap_or_default())
}

/// How long ago something was by then, in nanoseconds of that clock.
pub(super) const fn idle_time(since_ns: u64, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_nanos(since_ns))
}

#[cfg(test)]
mod tests {
    #[test]
    fn offsets_are_read() {
        let file = |seconds: &str, nanoseconds: &str| {
            format!("monotonic  {seconds:>10} {nanoseconds:>9}\nboottime           7         0\n")
        };
        let hours = 3 * 3_600 * 1_000_000_000;
        assert_eq!(super::parse_monotonic_offset(&file("0", "0")), Some(0));
        assert_eq!(super::parse_monotonic_offset(&file("10800", "5")), Some(hours + 5));
        assert_eq!(super::parse_monotonic_offset(&file("-10800", "5")), Some(5 - hours));
        assert_eq!(super::parse_monotonic_offset(""), None);
    }
}

//! Clock of the BPF programs, read from user space.

use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds by which this process's CLOCK_MONOTONIC is ahead of the kernel's. Not 0 in a time
/// namespace (time_namespaces(7)), which does not apply to BPF programs.
static TIMENS_MONOTONIC_OFFSET: LazyLock<i128> = LazyLock::new(|| {
    // A kernel without the file has no time namespaces.
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    parse_monotonic_offset(&offsets).unwrap_or_default()
});

/// Parses the offset of CLOCK_MONOTONIC, in ns: seconds, which may be negative, and nanoseconds.
fn parse_monotonic_offset(offsets: &str) -> Option<i128> {
    let entry = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let (seconds, nanoseconds) = entry.trim().split_once(' ')?;
    Some(nanoseconds_of(seconds.parse().ok()?, nanoseconds.trim().parse().ok()?))
}

const fn nanoseconds_of(seconds: i64, nanoseconds: i64) -> i128 {
    seconds as i128 * 1_000_000_000 + nanoseconds as i128
}

/// Time of `bpf_ktime_get_ns`: CLOCK_MONOTONIC outside of any time namespace.
pub(super) fn ktime_now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let nanoseconds = nanoseconds_of(now.tv_sec, now.tv_nsec) - *TIMENS_MONOTONIC_OFFSET;
    Duration::from_nanos(nanoseconds.try_into().unwrap_or_default())
}

/// Time from `since_ns` to `now`, both of the programs' clock; 0 if `since_ns` is later.
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

//! CPU time of the whole machine, from /proc/stat (proc_stat(5)).

use std::fs;

/// CPU time in which the machine was not idle since boot, in seconds.
pub(crate) fn busy_seconds() -> f64 {
    let times = times_by_state();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    times[..3].iter().chain(&times[5..7]).sum()
}

/// Share of CPU time since `before` in which the hypervisor ran another guest (steal).
pub(crate) fn steal_share_since(before: &[f64]) -> f64 {
    let spent: Vec<f64> =
        times_by_state()[..8].iter().zip(before).map(|(now, then)| now - then).collect();
    spent[7] / spent.iter().sum::<f64>()
}

/// CPU time of all processors since boot by state, in seconds.
pub(crate) fn times_by_state() -> Vec<f64> {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    fields.map(|field| field.parse::<f64>().unwrap() / ticks_per_second).collect()
}

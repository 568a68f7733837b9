//! Measures a load.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::load::{Load, drive, open, reply};
use crate::window::Window;

/// What was measured, in one piece or in several.
#[derive(Default)]
pub(crate) struct Measured {
    /// Connections, exchanges or bytes.
    done: f64,
    /// Seconds, and seconds of CPU.
    took: f64,
    cpu: f64,
    /// How long each exchange took, in ns.
    times: Vec<u32>,
}

impl Measured {
    /// One more piece of the same load.
    pub(crate) fn add(&mut self, more: Self) {
        self.done += more.done;
        self.took += more.took;
        self.cpu += more.cpu;
        self.times.extend(more.times);
    }

    /// In the load's unit.
    pub(crate) fn rate(&self, load: Load) -> f64 {
        match load {
            Load::Connections(_) | Load::Exchanges(..) => self.done / self.took,
            Load::Down(_) | Load::Up(_) => self.done * 8.0 / self.took / 1e9,
        }
    }

    /// The rate; CPU seconds for each GB, or for each thousand connections or exchanges; percentiles of an
    /// exchange's time, in µs.
    pub(crate) fn json(mut self, load: Load) -> Value {
        self.times.sort_unstable();
        let at = |percent: usize| self.times.get(self.times.len() * percent / 100);
        let [p50, p99] = [50, 99].map(|percent| at(percent).map(|&ns| f64::from(ns) / 1e3));
        let for_each = match load {
            Load::Connections(_) | Load::Exchanges(..) => 1e3,
            Load::Down(_) | Load::Up(_) => 1e9,
        };
        json!({ "rate": self.rate(load), "cpu": self.cpu / (self.done / for_each), "p50": p50, "p99": p99 })
    }
}

/// A load for so long, on connections that were there before.
pub(crate) fn measure(
    lab: &Lab,
    load: Load,
    to: SocketAddr,
    hello: &[u8],
    time: Duration,
) -> Measured {
    let (done, times) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let (ready, window) = (Barrier::new(load.flows()), OnceLock::new());
    let one = || {
        let stream = open(load, to, hello);
        ready.wait();
        let window = window.get_or_init(|| Window::new(time));
        drive(load, stream.as_ref(), || reply(to, hello).unwrap(), window, (&done, &times));
        stream
    };
    lab.client(|| {
        thread::scope(|scope| {
            // Threads of this one stay in the client's namespace, and streams are open until the last one ends.
            let all: Vec<_> = (0..load.flows()).map(|_| scope.spawn(one)).collect();
            let _streams: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
        });
    });
    let (took, cpu) = window.get().expect("a load of one flow at least").took();
    let done = done.load(Ordering::Relaxed) as f64;
    Measured { done, took, cpu, times: times.into_inner().unwrap() }
}

/// All time that the machine did not idle, so far.
pub(crate) fn cpu_seconds() -> f64 {
    let spent = spent();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    spent[..3].iter().chain(&spent[5..7]).sum()
}

/// The part of this machine's time, since `before`, in which it was to run and another one did (steal).
pub(crate) fn stolen_since(before: &[f64]) -> f64 {
    let spent: Vec<f64> = spent()[..8].iter().zip(before).map(|(now, then)| now - then).collect();
    spent[7] / spent.iter().sum::<f64>()
}

/// Seconds of all processors by what they were spent on (proc_stat(5)), so far.
pub(crate) fn spent() -> Vec<f64> {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let second = rustix::param::clock_ticks_per_second() as f64;
    fields.map(|field| field.parse::<f64>().unwrap() / second).collect()
}

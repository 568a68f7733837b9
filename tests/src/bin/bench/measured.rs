//! Measures a load.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::load::{Load, drive, open, reply};
use crate::places;
use crate::window::{WARM_UP, Window};

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
pub(crate) fn measure(lab: &Lab, load: Load, way: (SocketAddr, &[u8]), time: Duration) -> Measured {
    let work = Work::new(load, way, (load.warm_up(), time));
    let flows = vec![(); load.flows()];
    // Open until the last one ends.
    let _streams = on_each(lab, &flows, |()| {
        let stream = open(load, way.0, way.1);
        work.take_part(stream.as_ref());
        stream
    });
    work.measured()
}

/// A load's connections, at work now and then.
pub(crate) struct Standing<'a> {
    lab: &'a Lab,
    load: Load,
    way: (SocketAddr, &'a [u8]),
    streams: Vec<Option<TcpStream>>,
}

impl<'a> Standing<'a> {
    pub(crate) fn open(lab: &'a Lab, load: Load, way: (SocketAddr, &'a [u8])) -> Self {
        let flows = vec![(); load.flows()];
        let streams = on_each(lab, &flows, |()| open(load, way.0, way.1));
        let standing = Self { lab, load, way, streams };
        let _uncounted = standing.work(load.warm_up());
        standing
    }

    pub(crate) fn work(&self, time: Duration) -> Measured {
        let work = Work::new(self.load, self.way, (WARM_UP, time));
        on_each(self.lab, &self.streams, |stream| work.take_part(stream.as_ref()));
        work.measured()
    }
}

/// What all flows of a load do at once.
struct Work<'a> {
    load: Load,
    way: (SocketAddr, &'a [u8]),
    /// How long it does not count at first, and then how long it does.
    times: (Duration, Duration),
    ready: Barrier,
    window: OnceLock<Window>,
    done: AtomicU64,
    took: Mutex<Vec<u32>>,
}

impl<'a> Work<'a> {
    fn new(load: Load, way: (SocketAddr, &'a [u8]), times: (Duration, Duration)) -> Self {
        let (ready, window) = (Barrier::new(load.flows()), OnceLock::new());
        let (done, took) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Self { load, way, times, ready, window, done, took }
    }

    fn take_part(&self, stream: Option<&TcpStream>) {
        self.ready.wait();
        let window = self.window.get_or_init(|| Window::new(self.times.0, self.times.1));
        let next = || reply(self.way.0, self.way.1).unwrap();
        drive(self.load, stream, next, window, (&self.done, &self.took));
    }

    fn measured(self) -> Measured {
        let (took, cpu) = self.window.get().expect("a load of one flow at least").took();
        let done = self.done.into_inner() as f64;
        Measured { done, took, cpu, times: self.took.into_inner().unwrap() }
    }
}

/// In the client's namespace and place, on a thread for each.
fn on_each<T: Sync, R: Send>(lab: &Lab, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let work = |one| {
        places::take(0);
        work(one)
    };
    lab.client(|| {
        // Threads of this one stay in its namespace.
        thread::scope(|scope| {
            let all: Vec<_> = all.iter().map(|one| scope.spawn(|| work(one))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    })
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

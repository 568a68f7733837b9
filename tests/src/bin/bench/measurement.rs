//! Measures a load.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::cpu_pinning;
use crate::load::{Load, complete_connection, generate_load, open_flow};
use crate::window::{WARM_UP, Window};

/// What was measured, in one piece or in several.
#[derive(Default)]
pub(crate) struct Measurement {
    /// Connections, exchanges or bytes.
    completed: f64,
    /// Seconds, and seconds of CPU.
    seconds: f64,
    cpu: f64,
    /// How long each exchange took, in ns.
    latencies_ns: Vec<u32>,
}

impl Measurement {
    /// One more piece of the same load.
    pub(crate) fn merge(&mut self, more: Self) {
        self.completed += more.completed;
        self.seconds += more.seconds;
        self.cpu += more.cpu;
        self.latencies_ns.extend(more.latencies_ns);
    }

    /// In the load's unit.
    pub(crate) fn rate(&self, load: Load) -> f64 {
        match load {
            Load::Connections(_) | Load::RequestResponse(..) => self.completed / self.seconds,
            Load::Down(_) | Load::Up(_) => self.completed * 8.0 / self.seconds / 1e9,
        }
    }

    /// The rate; CPU seconds for each GB, or for each thousand connections or exchanges; percentiles of an
    /// exchange's time, in µs.
    pub(crate) fn into_json(mut self, load: Load) -> Value {
        self.latencies_ns.sort_unstable();
        let at = |percent: usize| self.latencies_ns.get(self.latencies_ns.len() * percent / 100);
        let [p50, p99] = [50, 99].map(|percent| at(percent).map(|&ns| f64::from(ns) / 1e3));
        let per_unit = match load {
            Load::Connections(_) | Load::RequestResponse(..) => 1e3,
            Load::Down(_) | Load::Up(_) => 1e9,
        };
        json!({ "rate": self.rate(load), "cpu": self.cpu / (self.completed / per_unit), "p50": p50, "p99": p99 })
    }
}

/// A load for so long, on connections that were there before.
pub(crate) fn measure(
    lab: &Lab,
    load: Load,
    target: (SocketAddr, &[u8]),
    time: Duration,
) -> Measurement {
    let work = LoadRun::new(load, target, (load.warm_up(), time));
    let flows = vec![(); load.flows()];
    // Open until the last one ends.
    let _streams = run_on_threads(lab, &flows, |()| {
        let stream = open_flow(load, target.0, target.1);
        work.run_flow(stream.as_ref());
        stream
    });
    work.finish()
}

/// A load's connections, at work now and then.
pub(crate) struct OpenFlows<'a> {
    lab: &'a Lab,
    load: Load,
    target: (SocketAddr, &'a [u8]),
    streams: Vec<Option<TcpStream>>,
}

impl<'a> OpenFlows<'a> {
    pub(crate) fn open(lab: &'a Lab, load: Load, target: (SocketAddr, &'a [u8])) -> Self {
        let flows = vec![(); load.flows()];
        let streams = run_on_threads(lab, &flows, |()| open_flow(load, target.0, target.1));
        let open_flows = Self { lab, load, target, streams };
        let _uncounted = open_flows.work(load.warm_up());
        open_flows
    }

    pub(crate) fn work(&self, time: Duration) -> Measurement {
        let work = LoadRun::new(self.load, self.target, (WARM_UP, time));
        run_on_threads(self.lab, &self.streams, |stream| work.run_flow(stream.as_ref()));
        work.finish()
    }
}

/// What all flows of a load do at once.
struct LoadRun<'a> {
    load: Load,
    target: (SocketAddr, &'a [u8]),
    /// How long it does not count at first, and then how long it does.
    times: (Duration, Duration),
    ready: Barrier,
    window: OnceLock<Window>,
    done: AtomicU64,
    latencies_ns: Mutex<Vec<u32>>,
}

impl<'a> LoadRun<'a> {
    fn new(load: Load, target: (SocketAddr, &'a [u8]), times: (Duration, Duration)) -> Self {
        let (ready, window) = (Barrier::new(load.flows()), OnceLock::new());
        let (done, latencies_ns) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Self { load, target, times, ready, window, done, latencies_ns }
    }

    fn run_flow(&self, stream: Option<&TcpStream>) {
        self.ready.wait();
        let window = self.window.get_or_init(|| Window::new(self.times.0, self.times.1));
        let next = || complete_connection(self.target.0, self.target.1).unwrap();
        generate_load(self.load, stream, next, window, (&self.done, &self.latencies_ns));
    }

    fn finish(self) -> Measurement {
        let (took, cpu) = self.window.get().expect("a load of one flow at least").seconds_and_cpu();
        let done = self.done.into_inner() as f64;
        Measurement {
            completed: done,
            seconds: took,
            cpu,
            latencies_ns: self.latencies_ns.into_inner().unwrap(),
        }
    }
}

/// In the client's namespace and place, on a thread for each.
fn run_on_threads<T: Sync, R: Send>(lab: &Lab, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let work = |one| {
        cpu_pinning::pin_thread(0);
        work(one)
    };
    lab.in_client(|| {
        // Threads of this one stay in its namespace.
        thread::scope(|scope| {
            let all: Vec<_> = all.iter().map(|one| scope.spawn(|| work(one))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    })
}

/// All time that the machine did not idle, so far.
pub(crate) fn cpu_seconds() -> f64 {
    let spent = cpu_times();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    spent[..3].iter().chain(&spent[5..7]).sum()
}

/// The part of this machine's time, since `before`, in which it was to run and another one did (steal).
pub(crate) fn steal_share_since(before: &[f64]) -> f64 {
    let spent: Vec<f64> =
        cpu_times()[..8].iter().zip(before).map(|(now, then)| now - then).collect();
    spent[7] / spent.iter().sum::<f64>()
}

/// Seconds of all processors by what they were spent on (proc_stat(5)), so far.
pub(crate) fn cpu_times() -> Vec<f64> {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let second = rustix::param::clock_ticks_per_second() as f64;
    fields.map(|field| field.parse::<f64>().unwrap() / second).collect()
}

//! Measures a load.

use std::net::TcpStream;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::cpu_pinning;
use crate::load::{Load, LoadResults, Target, complete_connection, generate_load, open_flow};
use crate::window::{WARM_UP, Window};

/// Results of a load, from one measurement or from several.
#[derive(Default)]
pub(crate) struct Measurement {
    /// Connections, requests with their responses, or bytes.
    completed: f64,
    /// Duration in seconds.
    seconds: f64,
    /// CPU time in seconds.
    cpu_seconds: f64,
    /// Time of each request and its response, in ns.
    latencies_ns: Vec<u32>,
}

impl Measurement {
    /// Adds one more measurement of the same load.
    pub(crate) fn merge(&mut self, more: Self) {
        self.completed += more.completed;
        self.seconds += more.seconds;
        self.cpu_seconds += more.cpu_seconds;
        self.latencies_ns.extend(more.latencies_ns);
    }

    /// Rate in the unit of the load.
    pub(crate) fn rate(&self, load: Load) -> f64 {
        match load {
            Load::Connections(_) | Load::RequestResponse(..) => self.completed / self.seconds,
            Load::Down(_) | Load::Up(_) => self.completed * 8.0 / self.seconds / 1e9,
        }
    }

    /// The rate; CPU seconds per GB, or per 1,000 connections or requests; percentiles of the time of a request and its
    /// response, in µs.
    pub(crate) fn into_json(mut self, load: Load) -> Value {
        self.latencies_ns.sort_unstable();
        let at = |percent: usize| self.latencies_ns.get(self.latencies_ns.len() * percent / 100);
        let [p50, p99] = [50, 99].map(|percent| at(percent).map(|&ns| f64::from(ns) / 1e3));
        let per_unit = match load {
            Load::Connections(_) | Load::RequestResponse(..) => 1e3,
            Load::Down(_) | Load::Up(_) => 1e9,
        };
        let cpu = self.cpu_seconds / (self.completed / per_unit);
        json!({ "rate": self.rate(load), "cpu": cpu, "p50": p50, "p99": p99 })
    }
}

/// Formats a result of [`Measurement::into_json`] as one line.
pub(crate) fn format_result(result: &Value, load: Load) -> String {
    let number = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
    let line = format!("{:>10.2} {:<7} CPU {:.3}", number("rate"), load.unit(), number("cpu"));
    match result["p50"].as_f64() {
        Some(p50) => format!("{line} p50 {p50:.1} p99 {:.1}", number("p99")),
        None => line,
    }
}

/// Measures a load on new connections for this time.
pub(crate) fn measure(lab: &Lab, load: Load, target: Target<'_>, time: Duration) -> Measurement {
    let run = LoadRun::new(load, target, load.warm_up(), time);
    let flows = vec![(); load.flows()];
    // The connections stay open until the last thread ends.
    let _streams = run_on_threads(lab, &flows, |()| {
        let stream = open_flow(load, target);
        run.run_flow(stream.as_ref());
        stream
    });
    run.finish()
}

/// Open connections of a load, for measurements in slices.
pub(crate) struct OpenFlows<'a> {
    lab: &'a Lab,
    load: Load,
    target: Target<'a>,
    streams: Vec<Option<TcpStream>>,
}

impl<'a> OpenFlows<'a> {
    pub(crate) fn open(lab: &'a Lab, load: Load, target: Target<'a>) -> Self {
        let flows = vec![(); load.flows()];
        let streams = run_on_threads(lab, &flows, |()| open_flow(load, target));
        let open_flows = Self { lab, load, target, streams };
        let _warm_up = open_flows.measure(load.warm_up());
        open_flows
    }

    pub(crate) fn measure(&self, time: Duration) -> Measurement {
        let run = LoadRun::new(self.load, self.target, WARM_UP, time);
        run_on_threads(self.lab, &self.streams, |stream| run.run_flow(stream.as_ref()));
        run.finish()
    }
}

/// One measurement, which all threads of a load share.
struct LoadRun<'a> {
    load: Load,
    target: Target<'a>,
    warm_up: Duration,
    time: Duration,
    ready: Barrier,
    window: OnceLock<Window>,
    results: LoadResults,
}

impl<'a> LoadRun<'a> {
    fn new(load: Load, target: Target<'a>, warm_up: Duration, time: Duration) -> Self {
        Self {
            load,
            target,
            warm_up,
            time,
            ready: Barrier::new(load.flows()),
            window: OnceLock::new(),
            results: LoadResults::default(),
        }
    }

    fn run_flow(&self, stream: Option<&TcpStream>) {
        self.ready.wait();
        let window = self.window.get_or_init(|| Window::new(self.warm_up, self.time));
        let connect = || complete_connection(self.target).unwrap();
        generate_load(self.load, stream, connect, window, &self.results);
    }

    fn finish(self) -> Measurement {
        let window = self.window.get().expect("a load of one flow at least");
        let (seconds, cpu_seconds) = window.seconds_and_cpu();
        Measurement {
            completed: self.results.completed.into_inner() as f64,
            seconds,
            cpu_seconds,
            latencies_ns: self.results.latencies_ns.into_inner().unwrap(),
        }
    }
}

/// Calls `work` for each item on a thread of its own, in the client's namespace and on the client's core.
fn run_on_threads<T: Sync, R: Send>(
    lab: &Lab,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let work = |item| {
        cpu_pinning::pin_thread(0);
        work(item)
    };
    lab.in_client(|| {
        // New threads stay in the namespace of this one.
        thread::scope(|scope| {
            let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    })
}

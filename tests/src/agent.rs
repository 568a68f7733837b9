//! The agent under test: a process of the snisplit binary, its log and its records.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kernel::{self, PacketCounter, SockmapCounter};
use crate::lab::{Lab, PROXY};
use crate::link::has_ipv6;
use crate::wait::{default_timeout, wait_until};

/// Port that the agent listens on, on every address.
pub const PORT: u16 = 443;
const ADMIN: &str = "127.0.0.1:9901";

/// A running agent. Dropping it kills the process, and fails the test if the log has a panic or an unexpected warning.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    instance: String,
    records: Receiver<Value>,
    log: Arc<Mutex<String>>,
    allows_warnings: bool,
}

/// Path of the binary that `cargo xtask test` built.
pub fn binary_path() -> String {
    std::env::var("SNISPLIT_BIN").expect("SNISPLIT_BIN: run these tests by `cargo xtask test`")
}

/// Engine of agents whose test does not name one: that of `cargo xtask test --engine`, or none for the default.
fn selected_engine() -> Option<String> {
    std::env::var("SNISPLIT_TEST_ENGINE").ok()
}

/// Engine that the record of a short flow has if its test does not name one.
pub fn default_engine() -> String {
    selected_engine().unwrap_or_else(|| "splice".into())
}

impl Agent {
    /// Starts an agent with a listener, an access log and these flags, and waits until it is ready.
    pub fn start(lab: &Lab, flags: &[&str]) -> Self {
        Self::start_with_wrapper(lab, &[], flags)
    }

    /// Starts an agent as [`Self::start`] does, by another program such as `prlimit`.
    pub fn start_with_wrapper(lab: &Lab, wrapper: &[&str], flags: &[&str]) -> Self {
        let telemetry_args = ["--admin", ADMIN, "--access-log", "-"];
        Self::spawn(
            lab,
            &[wrapper, &[&binary_path()]].concat(),
            &[&telemetry_args[..], flags].concat(),
        )
    }

    /// Starts an agent without access log and metrics, for benchmarks.
    pub fn start_without_telemetry(lab: &Lab, flags: &[&str]) -> Self {
        Self::spawn(lab, &[&binary_path()], flags)
    }

    /// Starts an agent with a configuration file, an access log and these flags, and without a listener of its own.
    pub fn start_with_config(lab: &Lab, file: &Path, flags: &[&str]) -> Self {
        let args = ["run", "--admin", ADMIN, "--access-log", "-", "--config"];
        let binary = binary_path();
        let args = [&[&binary[..]], &args[..], &[file.to_str().unwrap()], flags].concat();
        Self::launch(lab, &args)
    }

    /// Starts an agent with a configuration file and these flags. It has no records, unless the flags name an access log.
    pub fn start_without_access_log(lab: &Lab, file: &Path, flags: &[&str]) -> Self {
        let binary = binary_path();
        let args = [&binary, "run", "--config", file.to_str().unwrap()];
        Self::launch(lab, &[&args[..], flags].concat())
    }

    fn spawn(lab: &Lab, program: &[&str], flags: &[&str]) -> Self {
        let listen = if has_ipv6() { format!("[::]:{PORT}") } else { format!("0.0.0.0:{PORT}") };
        Self::launch(lab, &[program, &["run", "--listen", &listen], flags].concat())
    }

    fn launch(lab: &Lab, args: &[&str]) -> Self {
        let mut command = Command::new(args[0]);
        command.args(&args[1..]);
        if let Some(engine) = selected_engine().filter(|_| !args.contains(&"--engine")) {
            command.args(["--engine", &engine]);
        }
        // Tests that run at the same time share bpffs and /run, so each agent needs an instance of its own.
        let named = args.iter().position(|arg| *arg == "--instance").map(|at| args[at + 1]);
        let instance = named.unwrap_or_else(|| lab.namespace_names()[1]).to_owned();
        if named.is_none() {
            command.args(["--instance", &instance]);
        }
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = lab.in_proxy(|| command.spawn()).unwrap();
        let records = parse_records(child.stdout.take().unwrap());
        let log = collect_log(child.stderr.take().unwrap());
        let agent = Self { child, instance, records, log, allows_warnings: false };
        // With `engine = "auto"`, the self-test of sockmap runs after "ready" and takes CPU time and descriptors. The
        // message "engines loaded" follows it.
        let ready_messages = [" ready engine=", " engines loaded "];
        wait_until("the agent to be ready", || {
            ready_messages.iter().all(|text| agent.log_count(text) > 0).then_some(())
        });
        agent
    }

    /// Accepts warnings in the log.
    pub fn allow_warnings(mut self) -> Self {
        self.allows_warnings = true;
        self
    }

    /// Waits for the next record of the access log.
    #[track_caller]
    pub fn next_record(&self) -> Value {
        self.records.recv_timeout(default_timeout()).expect("no connection has ended")
    }

    /// Waits for the next record with this server name, and drops those before it.
    #[track_caller]
    pub fn next_record_for(&self, name: &str) -> Value {
        loop {
            let record = self.next_record();
            if record["sni"] == name {
                return record;
            }
        }
    }

    /// Waits for the next record for this time at most.
    pub fn next_record_within(&self, time: Duration) -> Option<Value> {
        self.records.recv_timeout(time).ok()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// How often its log contains this text.
    pub fn log_count(&self, text: &str) -> usize {
        self.log.lock().unwrap().matches(text).count()
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    /// Name of the instance that it is on its host.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Path of one of its pins.
    pub fn pin_path(&self, name: &str) -> String {
        kernel::pin_path(&self.instance, name)
    }

    /// A counter of its sockmap engine, summed over all CPUs.
    pub fn sockmap_counter(&self, counter: SockmapCounter) -> u64 {
        kernel::sockmap_counter(&self.instance, counter)
    }

    /// A counter of its packet engine, summed over all CPUs.
    pub fn packet_counter(&self, counter: PacketCounter) -> u64 {
        kernel::packet_counter(&self.instance, counter)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Value of the metric with this name and labels; 0 if `/metrics` does not have it.
    pub fn metric(&self, lab: &Lab, name: &str) -> f64 {
        let text = self.metrics(lab);
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap_or(0.0)
    }

    /// Text of `/metrics`.
    pub fn metrics(&self, lab: &Lab) -> String {
        let text = lab.in_proxy(|| {
            let url = format!("http://{ADMIN}/metrics");
            Command::new("curl").args(["-sf", "-m", "5", &url]).output().unwrap()
        });
        String::from_utf8(text.stdout).unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it exits.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        wait_until("the agent to exit", || self.child.try_wait().unwrap())
    }

    /// Number of its open descriptors of one kind, such as `socket:` or `pipe:` (proc_pid_fd(5)).
    pub fn open_descriptors(&self, kind: &str) -> usize {
        let folder = format!("/proc/{}/fd", self.pid());
        let links = std::fs::read_dir(folder).unwrap();
        let target =
            |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
        links.filter_map(target).filter(|to| to.to_string_lossy().starts_with(kind)).count()
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of the agent\n{log}---");
            return;
        }
        assert!(!log.contains("panicked"), "{log}");
        assert!(self.allows_warnings || !log.contains("WARN"), "{log}");
    }
}

/// Address of the agent, as the client sees it.
pub fn address() -> SocketAddr {
    (IpAddr::V4(PROXY), PORT).into()
}

fn parse_records(stdout: impl Read + Send + 'static) -> Receiver<Value> {
    let (sender, records) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let record = serde_json::from_str(&line).expect("the access log is JSON");
            if sender.send(record).is_err() {
                return;
            }
        }
    });
    records
}

fn collect_log(stderr: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&log);
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = shared.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}

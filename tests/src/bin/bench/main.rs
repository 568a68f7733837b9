//! `cargo xtask bench`: one load, one topology, every candidate in every round.
//!
//! Candidates stand in the proxy's namespace: snisplit on each engine, HAProxy in `mode tcp` with
//! the same routing by SNI, and `direct`, which is the client at the back end itself with the
//! proxy's namespace routing packets. The back end is a thread that answers raw bytes behind a real
//! hello, so that no cryptography hides the forwarding. CPU is the whole machine's, client, back end
//! and soft interrupts included, from /proc/stat.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snisplit_tests::hello::recorded;
use snisplit_tests::lab::{Lab, backend};

use candidate::Candidate;

mod candidate;
mod siege;

const CANDIDATES: [&str; 5] = ["direct", "copy", "splice", "sockmap", "haproxy"];
const BACKEND_PORT: u16 = 8001;
/// Bytes of a reply, and of a message in an exchange.
const MESSAGE: usize = 64;

/// What the client asks for behind its hello, in nine bytes of one letter.
#[derive(Clone, Copy)]
enum Load {
    /// Connect, hello, 64 bytes of reply, close; so many at once.
    Connections(usize),
    /// 64 bytes up, and 64 down once they are there, again and again; so many at once.
    Exchanges(usize),
    /// A stream down, so many at once.
    Down(usize),
    /// A stream up, so many at once.
    Up(usize),
}

impl Load {
    const ALL: [Self; 7] = [
        Self::Connections(32),
        Self::Exchanges(1),
        Self::Exchanges(64),
        Self::Down(1),
        Self::Down(8),
        Self::Up(1),
        Self::Up(8),
    ];

    fn name(self) -> String {
        match self {
            Self::Connections(n) => format!("connections, {n} at once"),
            Self::Exchanges(n) => format!("64 B to and fro, {n} flow(s)"),
            Self::Down(n) => format!("{n} flow(s) down"),
            Self::Up(n) => format!("{n} flow(s) up"),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Connections(_) | Self::Exchanges(_) => "/s",
            Self::Down(_) | Self::Up(_) => "Gbit/s",
        }
    }

    fn flows(self) -> usize {
        match self {
            Self::Connections(n) | Self::Exchanges(n) | Self::Down(n) | Self::Up(n) => n,
        }
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |what: &str| words.next().and_then(|w| w.parse::<u64>().ok()).expect(what);
    let (rounds, seconds) = (number("rounds"), Duration::from_secs(number("seconds")));
    let out = words.next().expect("a file for the results");
    let greeting = recorded().into_iter().find(|greeting| greeting.client == "chromium");
    let hello = greeting.expect("the greeting of chromium").bytes;
    let lab = Lab::new();
    lab.route_through();
    widen(&lab);
    let listener = lab.backends(|| TcpListener::bind(backend(BACKEND_PORT))).unwrap();
    let expected = hello.len();
    thread::spawn(move || serve(&listener, expected));
    let mut results = Vec::new();
    for load in Load::ALL {
        for round in 0..rounds {
            // Each round starts with another candidate, so that none always runs first.
            for turn in 0..CANDIDATES.len() {
                let name = CANDIDATES[(turn + round as usize) % CANDIDATES.len()];
                let candidate = Candidate::start(&lab, name);
                let (rate, cpu) = measure(&lab, load, candidate.address(), &hello, seconds);
                println!("{:<28} {name:<8} {rate:>10.2} {:<7} {cpu:.3}", load.name(), load.unit());
                results.push(json!({
                    "load": load.name(), "unit": load.unit(), "round": round,
                    "candidate": name, "rate": rate, "cpu": cpu,
                }));
            }
        }
    }
    let siege = siege::run(&lab, &hello, rounds, seconds);
    let machine = json!({ "cores": thread::available_parallelism().unwrap().get(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
        "haproxy": candidate::haproxy_version() });
    let all = json!({ "machine": machine, "seconds": seconds.as_secs(), "rounds": rounds,
        "results": Value::Array(results), "siege": siege });
    fs::write(out, serde_json::to_string_pretty(&all).unwrap()).unwrap();
}

/// Ports for connecting from. connect(2) searches half of them one by one (__inet_hash_connect), and a
/// siege holds 10,000 beside those in TIME_WAIT: with the usual 28,000 its search is what is measured.
fn widen(lab: &Lab) {
    let ports = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65535").unwrap();
    lab.client(ports);
    lab.proxy(ports);
}

/// Threads of the back end, each with one connection at a time.
const SERVERS: usize = 64;

fn serve(listener: &TcpListener, hello: usize) {
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                let mut buffer = vec![0; 256 * 1024];
                for stream in listener.incoming().flatten() {
                    let _peer_left = answer(stream, hello, &mut buffer);
                }
            });
        }
    });
}

/// A peer that leaves ends the stream; that is how a measurement stops.
fn answer(mut stream: TcpStream, hello: usize, buffer: &mut [u8]) -> io::Result<()> {
    stream.read_exact(&mut buffer[..hello + 9])?;
    match buffer[hello] {
        b'c' => stream.write_all(&buffer[..MESSAGE]),
        b'e' => loop {
            stream.read_exact(&mut buffer[..MESSAGE])?;
            stream.write_all(&buffer[..MESSAGE])?;
        },
        b'd' => loop {
            stream.write_all(buffer)?;
        },
        _ => loop {
            if stream.read(buffer)? == 0 {
                return Ok(());
            }
        },
    }
}

/// The rate, and CPU seconds: for each GB, or for each thousand connections or exchanges.
fn measure(lab: &Lab, load: Load, to: SocketAddr, hello: &[u8], time: Duration) -> (f64, f64) {
    let done = AtomicU64::new(0);
    let (cpu, begun) = (cpu_seconds(), Instant::now());
    let end = begun + time;
    lab.client(|| {
        thread::scope(|scope| {
            // Threads of this one stay in the client's namespace.
            for _ in 0..load.flows() {
                scope.spawn(|| drive(load, to, hello, end, &done));
            }
        });
    });
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let done = done.load(Ordering::Relaxed) as f64;
    match load {
        Load::Connections(_) | Load::Exchanges(_) => (done / took, cpu / (done / 1e3)),
        Load::Down(_) | Load::Up(_) => (done * 8.0 / took / 1e9, cpu / (done / 1e9)),
    }
}

fn drive(load: Load, to: SocketAddr, hello: &[u8], end: Instant, done: &AtomicU64) {
    let mut buffer = vec![0; 256 * 1024];
    let ask = |kind: u8| {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&[hello, &[kind; 9]].concat()).unwrap();
        stream
    };
    match load {
        Load::Connections(_) => {
            while Instant::now() < end {
                let mut reply = Vec::new();
                ask(b'c').read_to_end(&mut reply).unwrap();
                assert_eq!(reply.len(), MESSAGE);
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Load::Exchanges(_) => {
            let mut stream = ask(b'e');
            while Instant::now() < end {
                stream.write_all(&[0; MESSAGE]).unwrap();
                stream.read_exact(&mut [0; MESSAGE]).unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Load::Down(_) => {
            let mut stream = ask(b'd');
            while Instant::now() < end {
                let n = stream.read(&mut buffer).unwrap();
                done.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        Load::Up(_) => {
            let mut stream = ask(b'u');
            while Instant::now() < end {
                let n = stream.write(&buffer).unwrap();
                done.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
    }
}

/// All time that the machine did not idle, so far.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap()).collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let busy: u64 = ticks[..3].iter().chain(&ticks[5..8]).sum();
    busy as f64 / rustix::param::clock_ticks_per_second() as f64
}

//! The loads, and the back end that they are for.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

/// Bytes of a small message, and of a reply.
pub(crate) const SMALL: usize = 64;
/// Bytes of a large message.
pub(crate) const LARGE: usize = 16 * 1024;

/// What the client asks for behind its hello, in nine bytes of one letter.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// Connect, hello, 64 bytes of reply, close; so many at once.
    Connections(usize),
    /// So many bytes up, and as many down once they are there, again and again; so many at once.
    Exchanges(usize, usize),
    /// A stream down, so many at once.
    Down(usize),
    /// A stream up, so many at once.
    Up(usize),
}

impl Load {
    pub(crate) const ALL: [Self; 11] = [
        Self::Connections(32),
        Self::Exchanges(SMALL, 1),
        Self::Exchanges(SMALL, 64),
        Self::Exchanges(LARGE, 1),
        Self::Exchanges(LARGE, 64),
        Self::Down(1),
        Self::Down(8),
        Self::Down(64),
        Self::Up(1),
        Self::Up(8),
        Self::Up(64),
    ];

    /// Those whose names contain one of these words, or all.
    pub(crate) fn chosen(words: &[String]) -> impl Iterator<Item = Self> {
        let is_chosen = |name: &str| words.is_empty() || words.iter().any(|it| name.contains(it));
        Self::ALL.into_iter().filter(move |load| is_chosen(&load.name()))
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Connections(n) => format!("connections, {n} at once"),
            Self::Exchanges(SMALL, n) => format!("64 B to and fro, {n} flow(s)"),
            Self::Exchanges(_, n) => format!("16 KB to and fro, {n} flow(s)"),
            Self::Down(n) => format!("{n} flow(s) down"),
            Self::Up(n) => format!("{n} flow(s) up"),
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Connections(_) | Self::Exchanges(..) => "/s",
            Self::Down(_) | Self::Up(_) => "Gbit/s",
        }
    }

    fn flows(self) -> usize {
        match self {
            Self::Connections(n) | Self::Exchanges(_, n) | Self::Down(n) | Self::Up(n) => n,
        }
    }
}

/// Threads of the back end, each with one connection at a time.
const SERVERS: usize = 64;

/// A back end that answers raw bytes behind a hello of so many bytes.
pub(crate) fn serve(listener: &TcpListener, hello: usize) {
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
    stream.set_nodelay(true)?;
    stream.read_exact(&mut buffer[..hello + 9])?;
    let kind = buffer[hello];
    // As a ServerHello does: what follows begins when both have spoken.
    stream.write_all(&buffer[..SMALL])?;
    match kind {
        b'e' | b'E' => {
            let message = if kind == b'e' { SMALL } else { LARGE };
            loop {
                stream.read_exact(&mut buffer[..message])?;
                stream.write_all(&buffer[..message])?;
            }
        }
        b'c' => Ok(()),
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

/// What was measured: the rate; CPU seconds for each GB, or for each thousand connections or
/// exchanges; of exchanges the times, in µs.
pub(crate) struct Measured {
    pub(crate) rate: f64,
    pub(crate) cpu: f64,
    times: Vec<u32>,
}

impl Measured {
    pub(crate) fn json(mut self) -> Value {
        self.times.sort_unstable();
        let at = |percent: usize| self.times.get(self.times.len() * percent / 100);
        json!({ "rate": self.rate, "cpu": self.cpu, "p50": at(50), "p99": at(99) })
    }
}

pub(crate) fn measure(
    lab: &Lab,
    load: Load,
    to: SocketAddr,
    hello: &[u8],
    time: Duration,
) -> Measured {
    let (done, times) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let (cpu, begun) = (cpu_seconds(), Instant::now());
    let end = begun + time;
    lab.client(|| {
        thread::scope(|scope| {
            // Threads of this one stay in the client's namespace.
            for _ in 0..load.flows() {
                scope.spawn(|| drive(load, to, hello, end, (&done, &times)));
            }
        });
    });
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let done = done.load(Ordering::Relaxed) as f64;
    let (rate, cpu) = match load {
        Load::Connections(_) | Load::Exchanges(..) => (done / took, cpu / (done / 1e3)),
        Load::Down(_) | Load::Up(_) => (done * 8.0 / took / 1e9, cpu / (done / 1e9)),
    };
    Measured { rate, cpu, times: times.into_inner().unwrap() }
}

fn drive(
    load: Load,
    to: SocketAddr,
    hello: &[u8],
    end: Instant,
    (done, times): (&AtomicU64, &Mutex<Vec<u32>>),
) {
    let mut buffer = vec![0; 256 * 1024];
    let ask = |kind: u8| answered(to, hello, kind).unwrap();
    match load {
        Load::Connections(_) => {
            while Instant::now() < end {
                reply(to, hello).unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Load::Exchanges(size, _) => {
            let stream = ask(if size == SMALL { b'e' } else { b'E' });
            let own_times = exchange(stream, &mut buffer[..size], end);
            done.fetch_add(own_times.len() as u64, Ordering::Relaxed);
            times.lock().unwrap().extend(own_times);
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

/// Sends a message and waits for as much, again and again; how long each took, in µs.
fn exchange(mut stream: TcpStream, message: &mut [u8], end: Instant) -> Vec<u32> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        stream.write_all(message).unwrap();
        stream.read_exact(message).unwrap();
        times.push(begun.elapsed().as_micros() as u32);
    }
    times
}

/// A connection from its beginning to its end.
pub(crate) fn reply(to: SocketAddr, hello: &[u8]) -> io::Result<()> {
    let mut reply = Vec::new();
    ask(to, hello, b'c')?.read_to_end(&mut reply)?;
    if reply.len() == SMALL { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A connection that has said what it wants.
pub(crate) fn ask(to: SocketAddr, hello: &[u8], kind: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[hello, &[kind; 9]].concat())?;
    Ok(stream)
}

/// The same, once it is answered.
fn answered(to: SocketAddr, hello: &[u8], kind: u8) -> io::Result<TcpStream> {
    let mut stream = ask(to, hello, kind)?;
    stream.read_exact(&mut [0; SMALL])?;
    Ok(stream)
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

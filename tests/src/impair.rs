//! A bad line: a cable whose TCP packets are lost, late, out of order or doubled. This kernel has no
//! `sch_netem`, so the cable is us: frames go from one TAP device to the other through user space.
//! TAP devices know no offloads: what crosses is what a wire would carry, in packets of the MTU.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::dice::Dice;

/// What happens to TCP packets, each way. Everything else only takes its time.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    /// Lost, of a thousand.
    pub loss: u64,
    /// Carried twice, of a thousand.
    pub double: u64,
    /// Overtaken by those behind them, of a thousand.
    pub reorder: u64,
    /// How long the way is.
    pub delay: Duration,
    /// How much longer it may be, at random. Packets do not overtake each other by that.
    pub jitter: Duration,
}

impl Impairment {
    /// A cable as it should be.
    pub const GOOD: Self =
        Self { loss: 0, double: 0, reorder: 0, delay: Duration::ZERO, jitter: Duration::ZERO };

    /// A mobile client far away: besides what is lost, 2 % doubled, 3 % reordered, 3 to 5 ms each way.
    pub const fn of_loss(percent: u64) -> Self {
        Self {
            loss: percent * 10,
            double: 20,
            reorder: 30,
            delay: Duration::from_millis(3),
            jitter: Duration::from_millis(2),
        }
    }
}

/// What became of packets.
#[derive(Debug, Default)]
pub struct Fates {
    /// Carried, the second of doubled ones included.
    carried: AtomicU64,
    /// Lost.
    lost: AtomicU64,
    /// Carried twice.
    doubled: AtomicU64,
    /// Sent off late, so that others overtook them.
    reordered: AtomicU64,
}

impl Fates {
    /// Carried, lost, doubled and reordered.
    pub fn counts(&self) -> [u64; 4] {
        let all = [&self.carried, &self.lost, &self.doubled, &self.reordered];
        all.map(|count| count.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [carried, lost, doubled, reordered] = self.counts();
        write!(f, "{carried} packets, {lost} lost, {doubled} doubled, {reordered} reordered")
    }
}

/// A cable with an end in each of two namespaces. Dropping it takes it out.
#[derive(Debug)]
pub struct Cable {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    fates: Arc<Fates>,
}

/// One end, to be called in its namespace.
pub fn end(name: &str) -> SyncDevice {
    DeviceBuilder::new().name(name).layer(Layer::L2).mtu(1500).build_sync().unwrap()
}

impl Cable {
    /// Joins two ends.
    pub fn new(ends: [SyncDevice; 2], how: Impairment) -> Self {
        let [left, right] = ends.map(Arc::new);
        let (over, fates) = (Arc::new(AtomicBool::new(false)), Arc::new(Fates::default()));
        let mut threads = Vec::new();
        for (from, to, seed) in [(&left, &right, 1), (&right, &left, 2)] {
            let (sender, waiting) = channel();
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let (told, counted) = (Arc::clone(&over), Arc::clone(&fates));
            let dice = Dice::new(seed);
            threads.push(thread::spawn(move || take(&from, how, dice, (&told, &counted), &sender)));
            threads.push(thread::spawn(move || deliver(&waiting, &to)));
        }
        Self { over, threads, fates }
    }

    /// What became of packets so far, both ways.
    pub fn fates(&self) -> &Fates {
        &self.fates
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

/// How long to wait for a frame before looking whether it is all over.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A frame on its way: when it arrives, its number among all, its bytes.
type Frame = Reverse<(Instant, u64, Vec<u8>)>;

/// Takes frames off one end and decides what becomes of them.
fn take(
    from: &SyncDevice,
    how: Impairment,
    mut dice: Dice,
    (over, fates): (&AtomicBool, &Fates),
    to: &Sender<Frame>,
) {
    from.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 2_048];
    let (mut number, mut last) = (0, Instant::now());
    let mut send = |at, bytes: &[u8]| {
        number += 1;
        fates.carried.fetch_add(1, Ordering::Relaxed);
        let _over = to.send(Reverse((at, number, bytes.to_vec())));
    };
    while !over.load(Ordering::Relaxed) {
        let Ok(bytes) = from.recv(&mut buffer) else {
            let _spurious = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&LOOK_UP));
            continue;
        };
        let frame = &buffer[..bytes];
        let jitter = dice.roll(how.jitter.as_micros() as u64 + 1);
        let arrives = Instant::now() + how.delay + Duration::from_micros(jitter);
        last = last.max(arrives);
        let mut happens = |count: &AtomicU64, of_thousand| {
            let happens = is_tcp(frame) && dice.roll(1_000) < of_thousand;
            count.fetch_add(happens.into(), Ordering::Relaxed);
            happens
        };
        if happens(&fates.lost, how.loss) {
            continue;
        }
        let is_late = happens(&fates.reordered, how.reorder);
        let at = if is_late { last + how.delay / 2 } else { last };
        send(at, frame);
        if happens(&fates.doubled, how.double) {
            send(at + how.delay / 4, frame);
        }
    }
}

/// Puts frames on the other end when their time has come.
fn deliver(waiting: &Receiver<Frame>, to: &SyncDevice) {
    let mut queue: BinaryHeap<Frame> = BinaryHeap::new();
    loop {
        let next =
            queue.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        match waiting.recv_timeout(next.unwrap_or(Duration::from_secs(60))) {
            Ok(frame) => queue.push(frame),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        while queue.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            let Some(Reverse((_, _, bytes))) = queue.pop() else { break };
            let _end_is_gone = to.send(&bytes);
        }
    }
}

/// Whether an Ethernet frame carries TCP over IPv4, or over IPv6 without extension headers.
fn is_tcp(frame: &[u8]) -> bool {
    const TCP: u8 = 6;
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&TCP),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&TCP),
        _ => false,
    }
}

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

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// What happens to TCP packets, each way. Everything else only takes its time.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    /// Lost, of a thousand.
    pub loss_per_mille: u64,
    /// Carried twice, of a thousand.
    pub duplicate_per_mille: u64,
    /// Overtaken by those behind them, of a thousand.
    pub reorder_per_mille: u64,
    /// How long the way is.
    pub delay: Duration,
    /// How much longer it may be, at random. Packets do not overtake each other by that.
    pub jitter: Duration,
}

impl Impairment {
    /// A cable as it should be.
    pub const NONE: Self = Self {
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        reorder_per_mille: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };

    /// A mobile client far away: besides what is lost, 2 % doubled, 3 % reordered, 3 to 5 ms each way.
    pub const fn lossy(percent: u64) -> Self {
        Self {
            loss_per_mille: percent * 10,
            duplicate_per_mille: 20,
            reorder_per_mille: 30,
            delay: Duration::from_millis(3),
            jitter: Duration::from_millis(2),
        }
    }
}

/// What became of packets.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Carried, the second of doubled ones included.
    forwarded: AtomicU64,
    /// Lost.
    lost: AtomicU64,
    /// Carried twice.
    duplicated: AtomicU64,
    /// Sent off late, so that others overtook them.
    reordered: AtomicU64,
}

impl LinkStats {
    /// Carried, lost, doubled and reordered.
    pub fn counts(&self) -> [u64; 4] {
        let all = [&self.forwarded, &self.lost, &self.duplicated, &self.reordered];
        all.map(|count| count.load(Ordering::Relaxed))
    }
}

impl fmt::Display for LinkStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [carried, lost, doubled, reordered] = self.counts();
        write!(f, "{carried} packets, {lost} lost, {doubled} doubled, {reordered} reordered")
    }
}

/// A cable with an end in each of two namespaces. Dropping it takes it out.
#[derive(Debug)]
pub struct ImpairedLink {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    stats: Arc<LinkStats>,
}

/// One end, to be called in its namespace.
pub fn create_tap(name: &str) -> SyncDevice {
    DeviceBuilder::new().name(name).layer(Layer::L2).mtu(1500).build_sync().unwrap()
}

impl ImpairedLink {
    /// Joins two ends.
    pub fn new(ends: [SyncDevice; 2], impairment: Impairment) -> Self {
        let [left, right] = ends.map(Arc::new);
        let (stop, stats) = (Arc::new(AtomicBool::new(false)), Arc::new(LinkStats::default()));
        let mut threads = Vec::new();
        for (from, to, seed) in [(&left, &right, 1), (&right, &left, 2)] {
            let (sender, frames) = channel();
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let (stop_flag, link_stats) = (Arc::clone(&stop), Arc::clone(&stats));
            let rng = Rng::with_seed(seed);
            threads.push(thread::spawn(move || {
                receive_and_impair(&from, impairment, rng, (&stop_flag, &link_stats), &sender)
            }));
            threads.push(thread::spawn(move || deliver_when_due(&frames, &to)));
        }
        Self { stop, threads, stats }
    }

    /// What became of packets so far, both ways.
    pub fn stats(&self) -> &LinkStats {
        &self.stats
    }
}

impl Drop for ImpairedLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

/// How long to wait for a frame before looking whether it is all over.
const STOP_POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A frame on its way: when it arrives, its number among all, its bytes.
type Frame = Reverse<(Instant, u64, Vec<u8>)>;

/// Takes frames off one end and decides what becomes of them.
fn receive_and_impair(
    from: &SyncDevice,
    how: Impairment,
    mut rng: Rng,
    (stop, fates): (&AtomicBool, &LinkStats),
    to: &Sender<Frame>,
) {
    from.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 2_048];
    let (mut sequence, mut last) = (0, Instant::now());
    let mut send = |at, bytes: &[u8]| {
        sequence += 1;
        fates.forwarded.fetch_add(1, Ordering::Relaxed);
        let _over = to.send(Reverse((at, sequence, bytes.to_vec())));
    };
    while !stop.load(Ordering::Relaxed) {
        let Ok(bytes) = from.recv(&mut buffer) else {
            let _spurious =
                poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&STOP_POLL_INTERVAL));
            continue;
        };
        let frame = &buffer[..bytes];
        let jitter = rng.u64(..=how.jitter.as_micros() as u64);
        let arrives = Instant::now() + how.delay + Duration::from_micros(jitter);
        last = last.max(arrives);
        let mut happens = |count: &AtomicU64, per_mille| {
            let happens = is_tcp(frame) && rng.u64(..1_000) < per_mille;
            count.fetch_add(happens.into(), Ordering::Relaxed);
            happens
        };
        if happens(&fates.lost, how.loss_per_mille) {
            continue;
        }
        let is_late = happens(&fates.reordered, how.reorder_per_mille);
        let at = if is_late { last + how.delay / 2 } else { last };
        send(at, frame);
        if happens(&fates.duplicated, how.duplicate_per_mille) {
            send(at + how.delay / 4, frame);
        }
    }
}

/// Puts frames on the other end when their time has come.
fn deliver_when_due(frames: &Receiver<Frame>, to: &SyncDevice) {
    let mut queue: BinaryHeap<Frame> = BinaryHeap::new();
    loop {
        let next =
            queue.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        match frames.recv_timeout(next.unwrap_or(Duration::from_secs(60))) {
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

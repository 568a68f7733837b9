//! Impaired links: TCP packets are lost, delayed, reordered or duplicated, as `sch_netem` does, which not every kernel has.
//!
//! Two TAP devices are the ends of a link, and threads forward frames between them. TAP devices have no offloads: frames
//! are not larger than the MTU, and have complete checksums.

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

/// Impairment of TCP packets in each direction. Other packets are delayed only.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    /// Lost packets of 1,000.
    pub loss_per_mille: u64,
    /// Duplicated packets of 1,000.
    pub duplicate_per_mille: u64,
    /// Packets of 1,000 that later ones overtake.
    pub reorder_per_mille: u64,
    /// Delay of every packet.
    pub delay: Duration,
    /// Largest random delay in addition. Packets keep their order.
    pub jitter: Duration,
}

impl Impairment {
    /// No impairment.
    pub const NONE: Self = Self {
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        reorder_per_mille: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };

    /// A mobile network that loses this percentage of packets: 2 % are duplicated, 3 % reordered, 3 to 5 ms of delay in each
    /// direction.
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

/// Counters of a link, both directions together.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Forwarded packets, duplicates included.
    forwarded: AtomicU64,
    /// Lost packets.
    lost: AtomicU64,
    /// Duplicated packets.
    duplicated: AtomicU64,
    /// Packets that were delayed, so that others overtook them.
    reordered: AtomicU64,
}

impl LinkStats {
    /// Packets forwarded, lost, duplicated and reordered.
    pub fn counts(&self) -> [u64; 4] {
        let all = [&self.forwarded, &self.lost, &self.duplicated, &self.reordered];
        all.map(|count| count.load(Ordering::Relaxed))
    }
}

impl fmt::Display for LinkStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [forwarded, lost, duplicated, reordered] = self.counts();
        write!(
            f,
            "{forwarded} packets, {lost} lost, {duplicated} duplicated, {reordered} reordered"
        )
    }
}

/// A running link between two namespaces. Dropping it stops its threads.
#[derive(Debug)]
pub struct ImpairedLink {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    stats: Arc<LinkStats>,
}

/// Creates one end of a link in the calling thread's namespace.
pub fn create_tap(name: &str) -> SyncDevice {
    DeviceBuilder::new().name(name).layer(Layer::L2).mtu(1500).build_sync().unwrap()
}

impl ImpairedLink {
    /// Starts to forward between two ends.
    pub fn new(ends: [SyncDevice; 2], impairment: Impairment) -> Self {
        let [left, right] = ends.map(Arc::new);
        let (stop, stats) = (Arc::new(AtomicBool::new(false)), Arc::new(LinkStats::default()));
        let mut threads = Vec::new();
        for (from, to, seed) in [(&left, &right, 1), (&right, &left, 2)] {
            let (sender, frames) = channel();
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let direction = Direction {
                from,
                to: sender,
                impairment,
                rng: Rng::with_seed(seed),
                stop: Arc::clone(&stop),
                stats: Arc::clone(&stats),
                sequence: 0,
            };
            threads.push(thread::spawn(move || direction.receive_and_impair()));
            threads.push(thread::spawn(move || deliver_when_due(&frames, &to)));
        }
        Self { stop, threads, stats }
    }

    /// Counters so far.
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

/// How long a thread waits for a frame before it looks at the stop flag.
const STOP_POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A delayed frame: when it arrives, its number among all frames, its bytes.
type Frame = Reverse<(Instant, u64, Vec<u8>)>;

/// One direction of a link.
struct Direction {
    from: Arc<SyncDevice>,
    to: Sender<Frame>,
    impairment: Impairment,
    rng: Rng,
    stop: Arc<AtomicBool>,
    stats: Arc<LinkStats>,
    /// Number of the last frame.
    sequence: u64,
}

impl Direction {
    /// Receives frames from one end, and drops, delays, reorders or duplicates them.
    fn receive_and_impair(mut self) {
        self.from.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 2_048];
        let mut last = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(bytes) = self.from.recv(&mut buffer) else {
                let _spurious =
                    poll(&mut [PollFd::new(&self.from, PollFlags::IN)], Some(&STOP_POLL_INTERVAL));
                continue;
            };
            let frame = &buffer[..bytes];
            let Impairment { delay, jitter, .. } = self.impairment;
            let jitter = Duration::from_micros(self.rng.u64(..=jitter.as_micros() as u64));
            last = last.max(Instant::now() + delay + jitter);
            if is_tcp(frame) {
                self.impair_tcp(frame, last);
            } else {
                self.send(frame, last);
            }
        }
    }

    fn impair_tcp(&mut self, frame: &[u8], arrival: Instant) {
        let Impairment { loss_per_mille, duplicate_per_mille, reorder_per_mille, delay, .. } =
            self.impairment;
        if self.happens(loss_per_mille) {
            self.stats.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut arrival = arrival;
        if self.happens(reorder_per_mille) {
            self.stats.reordered.fetch_add(1, Ordering::Relaxed);
            arrival += delay / 2;
        }
        self.send(frame, arrival);
        if self.happens(duplicate_per_mille) {
            self.stats.duplicated.fetch_add(1, Ordering::Relaxed);
            self.send(frame, arrival + delay / 4);
        }
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        self.rng.u64(..1_000) < per_mille
    }

    fn send(&mut self, frame: &[u8], arrival: Instant) {
        self.sequence += 1;
        self.stats.forwarded.fetch_add(1, Ordering::Relaxed);
        let _link_is_dropped = self.to.send(Reverse((arrival, self.sequence, frame.to_vec())));
    }
}

/// Sends each frame to the other end when it has to arrive.
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

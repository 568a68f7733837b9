//! Payloads and the way that a peer sends them, reproducible from a seed.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use fastrand::Rng;

use crate::stream::read_once;
use crate::wait::sleep_for;

/// Sizes and pauses of what a peer sends.
#[derive(Clone, Copy, Debug)]
pub struct TrafficPattern {
    /// Largest payload of a direction, in bytes.
    pub max_bytes: u64,
    /// Largest chunks, in bytes. One of them, chosen at random, bounds the next chunk.
    pub max_chunk_sizes: [u64; 5],
    /// One in so many chunks is followed by a pause.
    pub chunks_per_pause: u64,
}

/// Chunks from one byte to more than a socket buffer holds.
pub const MIXED_SIZES: TrafficPattern = TrafficPattern {
    max_bytes: 150_000,
    max_chunk_sizes: [1, 3, 200, 5_000, 60_000],
    chunks_per_pause: 12,
};

/// Chunks that `auto` classifies as small messages, and that overlap when they are retransmitted.
pub const SMALL_MESSAGES: TrafficPattern = TrafficPattern {
    max_bytes: 30_000,
    max_chunk_sizes: [1, 3, 20, 200, 400],
    chunks_per_pause: 2,
};

/// Chunks that `auto` classifies as requests and responses.
pub const REQUEST_RESPONSE: TrafficPattern = TrafficPattern {
    max_bytes: 900_000,
    max_chunk_sizes: [1, 200, 5_000, 20_000, 30_000],
    chunks_per_pause: 2,
};

/// Small chunks with a pause behind each, so that a slow link does not merge them.
pub const SEPARATE_MESSAGES: TrafficPattern = TrafficPattern {
    max_bytes: 40_000,
    max_chunk_sizes: [1, 3, 20, 200, 400],
    chunks_per_pause: 1,
};

/// Generators that one seed gives, so that the sizes of chunks do not depend on the payload.
#[derive(Clone, Copy)]
enum Purpose {
    Payload,
    Sending,
    Receiving,
}

fn rng(seed: u64, side: u64, purpose: Purpose) -> Rng {
    Rng::with_seed(seed << 8 | side << 4 | purpose as u64)
}

/// Payload that one side sends; the same for the same seed and side.
pub fn payload(seed: u64, side: u64, max_bytes: u64) -> Vec<u8> {
    let mut rng = rng(seed, side, Purpose::Payload);
    let len = match rng.u8(..4) {
        0 => rng.u64(..40),
        _ => rng.u64(..max_bytes),
    };
    let mut bytes = vec![0; len as usize];
    rng.fill(&mut bytes);
    bytes
}

/// Sends the payload of one side in chunks, and ends the direction.
pub fn send_payload(mut stream: &TcpStream, seed: u64, side: u64, pattern: TrafficPattern) {
    let payload = payload(seed, side, pattern.max_bytes);
    let mut rng = rng(seed, side, Purpose::Sending);
    let mut rest = &payload[..];
    while !rest.is_empty() {
        let max_chunk = pattern.max_chunk_sizes[rng.usize(..pattern.max_chunk_sizes.len())];
        let (chunk, after) = rest.split_at((rng.u64(1..=max_chunk) as usize).min(rest.len()));
        stream.write_all(chunk).unwrap();
        rest = after;
        if rng.u64(..pattern.chunks_per_pause) == 0 {
            sleep_for(Duration::from_millis(rng.u64(..5)));
        }
    }
    if rng.u8(..3) == 0 {
        sleep_for(Duration::from_millis(rng.u64(..20)));
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Receives the payload that the other side, `side`, sends, with pauses. Panics if a byte is wrong or missing.
pub fn verify_payload(stream: &TcpStream, seed: u64, side: u64, max_bytes: u64) {
    let mut rng = rng(seed, side, Purpose::Receiving);
    let mut received: Vec<u8> = Vec::new();
    let mut buffer = vec![0; rng.usize(1..=30_000)];
    loop {
        let fail = |error| panic!("seed {seed}, {:?}: {error}", stream.local_addr());
        let bytes = read_once(stream, &mut buffer).unwrap_or_else(fail);
        if bytes == 0 {
            break;
        }
        received.extend(&buffer[..bytes]);
        if rng.u8(..40) == 0 {
            sleep_for(Duration::from_millis(rng.u64(..8)));
        }
    }
    assert!(
        received == payload(seed, side, max_bytes),
        "seed {seed}, {:?}: {} bytes received, not the payload",
        stream.local_addr(),
        received.len()
    );
}

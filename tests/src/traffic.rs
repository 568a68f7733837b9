//! Speeches that are said in odd pieces, and heard to the last byte.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::rng::SeededRng;
use crate::stream::read_once;
use crate::wait::sleep_for;

/// How one speaks.
#[derive(Clone, Copy, Debug)]
pub struct TrafficPattern {
    /// Bytes of a direction, at most.
    pub max_bytes: u64,
    /// The largest piece that is written at once, one of these at random.
    pub max_chunk_sizes: [u64; 5],
    /// One in how many pieces is followed by a pause.
    pub chunks_per_pause: u64,
}

/// From single bytes to more than a socket takes.
pub const MIXED_SIZES: TrafficPattern = TrafficPattern {
    max_bytes: 150_000,
    max_chunk_sizes: [1, 3, 200, 5_000, 60_000],
    chunks_per_pause: 12,
};
/// What `auto` takes for a talk by its small messages, and what overlaps when it is sent again.
pub const SMALL_MESSAGES: TrafficPattern = TrafficPattern {
    max_bytes: 30_000,
    max_chunk_sizes: [1, 3, 20, 200, 400],
    chunks_per_pause: 2,
};

/// What it takes for a talk because it goes to and fro.
pub const REQUEST_RESPONSE: TrafficPattern = TrafficPattern {
    max_bytes: 900_000,
    max_chunk_sizes: [1, 200, 5_000, 20_000, 30_000],
    chunks_per_pause: 2,
};

/// Small ones, one by one: on a slow line too they do not become one.
pub const SEPARATE_MESSAGES: TrafficPattern = TrafficPattern {
    max_bytes: 40_000,
    max_chunk_sizes: [1, 3, 20, 200, 400],
    chunks_per_pause: 1,
};

/// What one side says: always the same for a seed.
pub fn payload(seed: u64, side: u64, max_bytes: u64) -> Vec<u8> {
    let mut rng = SeededRng::stream(seed, side);
    let len = match rng.below(4) {
        0 => rng.below(40),
        _ => rng.below(max_bytes),
    };
    (0..len).map(|_| rng.below(256) as u8).collect()
}

/// Says it in pieces, and ends the direction.
pub fn send_payload(mut stream: &TcpStream, seed: u64, side: u64, pattern: TrafficPattern) {
    let expected = payload(seed, side, pattern.max_bytes);
    let mut rng = SeededRng::stream(seed, side + 2);
    let mut rest = &expected[..];
    while !rest.is_empty() {
        let max_chunk = pattern.max_chunk_sizes[rng.below(5) as usize];
        let (chunk, after) = rest.split_at((1 + rng.below(max_chunk) as usize).min(rest.len()));
        stream.write_all(chunk).unwrap();
        rest = after;
        if rng.below(pattern.chunks_per_pause) == 0 {
            sleep_for(Duration::from_millis(rng.below(5)));
        }
    }
    if rng.below(3) == 0 {
        sleep_for(Duration::from_millis(rng.below(20)));
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Hears all of it, sometimes slowly.
pub fn verify_payload(stream: &TcpStream, seed: u64, side: u64, max_bytes: u64) {
    let mut rng = SeededRng::stream(seed, side + 4);
    let mut received: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 + rng.below(30_000) as usize];
    loop {
        let fail = |error| panic!("seed {seed}, {:?}: {error}", stream.local_addr());
        let bytes = read_once(stream, &mut buffer).unwrap_or_else(fail);
        if bytes == 0 {
            break;
        }
        received.extend(&buffer[..bytes]);
        if rng.below(40) == 0 {
            sleep_for(Duration::from_millis(rng.below(8)));
        }
    }
    assert!(
        received == payload(seed, side, max_bytes),
        "seed {seed}, {:?}: {} bytes heard",
        stream.local_addr(),
        received.len()
    );
}

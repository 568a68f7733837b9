//! Speeches that are said in odd pieces, and heard to the last byte.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::dice::Dice;
use crate::stream::read_once;
use crate::wait::pass;

/// How one speaks.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Bytes of a direction, at most.
    pub most: u64,
    /// The largest piece that is written at once, one of these at random.
    pub pieces: [u64; 5],
    /// One in how many pieces is followed by a pause.
    pub pause: u64,
}

/// From single bytes to more than a socket takes.
pub const ALL_SIZES: Manner =
    Manner { most: 150_000, pieces: [1, 3, 200, 5_000, 60_000], pause: 12 };
/// What `auto` takes for a talk by its small messages, and what overlaps when it is sent again.
pub const SMALL: Manner = Manner { most: 30_000, pieces: [1, 3, 20, 200, 400], pause: 2 };

/// What it takes for a talk because it goes to and fro.
pub const BY_TURNS: Manner =
    Manner { most: 900_000, pieces: [1, 200, 5_000, 20_000, 30_000], pause: 2 };

/// Small ones, one by one: on a slow line too they do not become one.
pub const SINGLE: Manner = Manner { most: 40_000, pieces: [1, 3, 20, 200, 400], pause: 1 };

/// What one side says: always the same for a seed.
pub fn speech(seed: u64, side: u64, most: u64) -> Vec<u8> {
    let mut dice = Dice::of(seed, side);
    let len = match dice.roll(4) {
        0 => dice.roll(40),
        _ => dice.roll(most),
    };
    (0..len).map(|_| dice.roll(256) as u8).collect()
}

/// Says it in pieces, and ends the direction.
pub fn say(mut stream: &TcpStream, seed: u64, side: u64, manner: Manner) {
    let speech = speech(seed, side, manner.most);
    let mut dice = Dice::of(seed, side + 2);
    let mut rest = &speech[..];
    while !rest.is_empty() {
        let most = manner.pieces[dice.roll(5) as usize];
        let (piece, after) = rest.split_at((1 + dice.roll(most) as usize).min(rest.len()));
        stream.write_all(piece).unwrap();
        rest = after;
        if dice.roll(manner.pause) == 0 {
            pass(Duration::from_millis(dice.roll(5)));
        }
    }
    if dice.roll(3) == 0 {
        pass(Duration::from_millis(dice.roll(20)));
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Hears all of it, sometimes slowly.
pub fn hear(stream: &TcpStream, seed: u64, side: u64, most: u64) {
    let mut dice = Dice::of(seed, side + 4);
    let mut heard: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 + dice.roll(30_000) as usize];
    loop {
        let heard_of = |error| panic!("seed {seed}, {:?}: {error}", stream.local_addr());
        let bytes = read_once(stream, &mut buffer).unwrap_or_else(heard_of);
        if bytes == 0 {
            break;
        }
        heard.extend(&buffer[..bytes]);
        if dice.roll(40) == 0 {
            pass(Duration::from_millis(dice.roll(8)));
        }
    }
    assert!(
        heard == speech(seed, side, most),
        "seed {seed}, {:?}: {} bytes heard",
        stream.local_addr(),
        heard.len()
    );
}

//! Any bytes, cut anywhere: no panic, and the cuts never change the answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplit_common::hello::{Reader, Step};

const LIMIT: usize = 65_536;

fuzz_target!(|input: &[u8]| {
    let (cuts, bytes) = input.split_at(input.len().min(4));
    let whole = Reader::new(LIMIT).feed(bytes);
    check(&whole, bytes);
    let mut dripping = Reader::new(LIMIT);
    let mut ends: Vec<usize> =
        cuts.iter().map(|&cut| usize::from(cut) * bytes.len() / 256).collect();
    ends.sort_unstable();
    for end in ends {
        match dripping.feed(&bytes[..end]) {
            Step::More { need } => assert!(need > end),
            early => return assert_eq!(early, whole, "what is decided early stays decided"),
        }
    }
    assert_eq!(dripping.feed(bytes), whole);
});

fn check(whole: &Step, bytes: &[u8]) {
    match whole {
        Step::More { need } => {
            assert!(*need > bytes.len());
            // Nothing that could come before `need` would change the answer's kind.
            let mut padded = bytes.to_vec();
            padded.resize(need - 1, 22);
            let still = Reader::new(LIMIT).feed(&padded);
            assert!(!matches!(still, Step::Hello(_)), "{need} was too much");
        }
        Step::Hello(hello) => {
            assert!(hello.wire_len <= bytes.len() && hello.records > 0);
            let exact = &bytes[..hello.wire_len];
            assert_eq!(&Reader::new(LIMIT).feed(exact), whole, "bytes behind it must not matter");
            let short = Reader::new(LIMIT).feed(&exact[..exact.len() - 1]);
            assert!(matches!(short, Step::More { .. }), "{short:?} without the last byte");
        }
        Step::Bad(_) => {}
    }
}

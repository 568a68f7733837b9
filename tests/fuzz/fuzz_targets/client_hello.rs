//! Any bytes, cut anywhere: no panic, and the cuts never change the answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplit_common::client_hello::{ClientHelloParser, ParseStatus};

const LIMIT: usize = 65_536;

fuzz_target!(|input: &[u8]| {
    let (cuts, bytes) = input.split_at(input.len().min(4));
    let whole = ClientHelloParser::new(LIMIT).parse(bytes);
    check(&whole, bytes);
    let mut dripping = ClientHelloParser::new(LIMIT);
    let mut ends: Vec<usize> =
        cuts.iter().map(|&cut| usize::from(cut) * bytes.len() / 256).collect();
    ends.sort_unstable();
    for end in ends {
        match dripping.parse(&bytes[..end]) {
            ParseStatus::Incomplete { needed: need } => assert!(need > end),
            early => return assert_eq!(early, whole, "what is decided early stays decided"),
        }
    }
    assert_eq!(dripping.parse(bytes), whole);
});

fn check(whole: &ParseStatus, bytes: &[u8]) {
    match whole {
        ParseStatus::Incomplete { needed: need } => {
            assert!(*need > bytes.len());
            // Nothing that could come before `need` would change the answer's kind.
            let mut padded = bytes.to_vec();
            padded.resize(need - 1, 22);
            let still = ClientHelloParser::new(LIMIT).parse(&padded);
            assert!(!matches!(still, ParseStatus::Complete(_)), "{need} was too much");
        }
        ParseStatus::Complete(hello) => {
            assert!(hello.wire_len <= bytes.len() && hello.records > 0);
            let exact = &bytes[..hello.wire_len];
            assert_eq!(&ClientHelloParser::new(LIMIT).parse(exact), whole, "bytes behind it must not matter");
            let short = ClientHelloParser::new(LIMIT).parse(&exact[..exact.len() - 1]);
            assert!(matches!(short, ParseStatus::Incomplete { .. }), "{short:?} without the last byte");
        }
        ParseStatus::Invalid(_) => {}
    }
}

//! Any bytes: no panic, a header never claims more than there is, and what is behind it is not its
//! business.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplit_common::proxy_protocol::{MAX_HEADER_LEN, ParseStatus, parse};

fuzz_target!(|bytes: &[u8]| match parse(bytes) {
    ParseStatus::Incomplete { needed } => assert!(needed > bytes.len() && needed <= MAX_HEADER_LEN),
    ParseStatus::Complete(header) => {
        assert!(header.len <= bytes.len());
        assert_eq!(parse(&bytes[..header.len]), ParseStatus::Complete(header));
        let short = parse(&bytes[..header.len - 1]);
        assert!(matches!(short, ParseStatus::Incomplete { .. }), "{short:?} without the last byte");
    }
    ParseStatus::Invalid(why) => assert_eq!(parse(&[bytes, b"more"].concat()), ParseStatus::Invalid(why)),
});

//! Any bytes: no panic, a header never claims more than there is, and what is behind it is not its
//! business.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplit_common::proxy_protocol::{HEADER_MAX, Step, read};

fuzz_target!(|bytes: &[u8]| match read(bytes) {
    Step::More { need } => assert!(need > bytes.len() && need <= HEADER_MAX),
    Step::Header(header) => {
        assert!(header.len <= bytes.len());
        assert_eq!(read(&bytes[..header.len]), Step::Header(header));
        let short = read(&bytes[..header.len - 1]);
        assert!(matches!(short, Step::More { .. }), "{short:?} without the last byte");
    }
    Step::Bad(why) => assert_eq!(read(&[bytes, b"more"].concat()), Step::Bad(why)),
});

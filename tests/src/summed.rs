//! A packet as a NIC hands it over that has summed up all of it (`CHECKSUM_COMPLETE`,
//! include/linux/skbuff.h): that sum, too, must be right behind a program.

use std::io;

use aya::programs::loaded_programs;
use rustix::fd::{AsFd as _, AsRawFd as _};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const TEST_RUN: libc::c_int = 10;
/// Since Linux 6.16: with it the kernel sums up, and compares (net/bpf/test_run.c).
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Test {
    program: u32,
    answer: u32,
    in_bytes: u32,
    out_bytes: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
    context: [u64; 3],
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// What the program with this id answers, and makes of the packet.
///
/// # Errors
///
/// `EBADMSG` if the sum is wrong behind it; `EINVAL` if the kernel does not know this.
pub fn run(id: u32, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let all = loaded_programs().filter_map(Result::ok);
    let program = all.into_iter().find(|program| program.id() == id).expect("a program of that id");
    let program = program.fd().map_err(io::Error::other)?;
    let mut out = vec![0; packet.len() + 256];
    let mut test = Test {
        program: program.as_fd().as_raw_fd() as u32,
        in_bytes: packet.len() as u32,
        out_bytes: out.len() as u32,
        input: packet.as_ptr() as u64,
        output: out.as_mut_ptr() as u64,
        flags: CHECKSUM_COMPLETE,
        ..Test::default()
    };
    // SAFETY: the kernel reads and writes the structure, and both buffers within their lengths.
    let done = unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut test, size_of::<Test>()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(test.out_bytes as usize);
    Ok((test.answer, out))
}

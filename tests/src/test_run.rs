//! `BPF_PROG_TEST_RUN`: the answers of programs, and a run with a checksum over the whole packet.
//!
//! A NIC may give such a checksum (`CHECKSUM_COMPLETE`, include/linux/skbuff.h). It must be right after the
//! program has changed the packet, too.

use std::io;

use aya::programs::loaded_programs;
use rustix::fd::{AsFd as _, AsRawFd as _};

/// `TC_ACT_SHOT`: drops the packet.
pub const TC_ACT_SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`: sends the packet to another interface.
pub const TC_ACT_REDIRECT: u32 = 7;
/// `TCX_NEXT` and `TC_ACT_UNSPEC`: leaves the packet to the next program, and then to the kernel.
pub const TCX_NEXT: u32 = u32::MAX;
/// `XDP_PASS`: gives the packet to the kernel.
pub const XDP_PASS: u32 = 2;
/// `XDP_REDIRECT`: sends the packet by another driver.
pub const XDP_REDIRECT: u32 = 4;

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Has the kernel compute the checksum before the run and compare it after the run (net/bpf/test_run.c, since
/// Linux 6.16).
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx: [u64; 3],
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// Runs the program with this id on a packet whose checksum is complete. Returns the program's answer and the
/// packet that it made.
///
/// # Errors
///
/// `EBADMSG` if the checksum is wrong after the run; `EINVAL` if the kernel does not have the flag.
pub fn run_with_checksum_complete(id: u32, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let all = loaded_programs().filter_map(Result::ok);
    let program = all.into_iter().find(|program| program.id() == id).expect("a program of that id");
    let program = program.fd().map_err(io::Error::other)?;
    let mut out = vec![0; packet.len() + 256];
    let mut test = TestRunAttr {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        ..TestRunAttr::default()
    };
    // SAFETY: the kernel reads and writes the structure, and both buffers within their lengths.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut test, size_of::<TestRunAttr>())
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(test.data_size_out as usize);
    Ok((test.retval, out))
}

//! A packet as a NIC hands it over that has summed up all of it (`CHECKSUM_COMPLETE`,
//! include/linux/skbuff.h): that sum, too, must be right behind a program.

use std::io;

use aya::programs::loaded_programs;
use rustix::fd::{AsFd as _, AsRawFd as _};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Since Linux 6.16: with it the kernel sums up, and compares (net/bpf/test_run.c).
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

/// What the program with this id answers, and makes of the packet.
///
/// # Errors
///
/// `EBADMSG` if the sum is wrong behind it; `EINVAL` if the kernel does not know this.
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

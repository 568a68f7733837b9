//! Errors of BPF objects, maps and programs.

use std::io::{self, ErrorKind};

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use snisplit_common::abi::{PACKET_ABI_VERSION, SOCKMAP_ABI_VERSION};
use thiserror::Error;

/// Error of a BPF operation.
#[derive(Debug, Error)]
pub(crate) enum BpfError {
    #[error("the kernel's type information (BTF) lacks fields of TCP sockets: {0}")]
    Btf(String),
    #[error("cannot load the BPF object (needs CAP_BPF and CAP_NET_ADMIN)")]
    Load(#[from] EbpfError),
    #[error("the BPF object has no `{0}`")]
    MissingFromObject(&'static str),
    /// The last lines of the verifier's log, and the kernel's error.
    #[error("the BPF verifier rejected the program (`--log-level debug` shows its log): {0}")]
    VerifierRejected(String, #[source] io::Error),
    #[error("signals interrupted the BPF verifier each time; try again")]
    Interrupted(#[source] io::Error),
    #[error("the kernel denies loading the BPF program (needs CAP_BPF and CAP_NET_ADMIN)")]
    LoadDenied(#[source] io::Error),
    #[error("the kernel rejected the BPF program")]
    Program(#[source] ProgramError),
    #[error("packet.hook: tcx needs Linux 6.6 or later; write \"auto\" or \"clsact\"")]
    NoTcx,
    #[error("BPF map operation failed")]
    Map(#[from] MapError),
    #[error("cannot open the BPF program's log")]
    Log(#[from] aya_log::Error),
    #[error(
        "the pins have ABI version {0}, this snisplit has {SOCKMAP_ABI_VERSION}: use the version that runs"
    )]
    AbiVersion(u32),
    #[error(
        "the flows in {1} have packet ABI version {0}, this snisplit has {PACKET_ABI_VERSION}: start the \
         version that made them, or convert them with `snisplit flows migrate`; `snisplit flows purge` \
         ends them"
    )]
    PacketAbiVersion(u32, String),
    #[error("cannot attach the BPF program to an interface")]
    Attach(#[from] LinkError),
    #[error("BPF pin operation failed")]
    Pin(#[from] PinError),
    #[error("socket or ring buffer operation failed")]
    Socket(#[from] io::Error),
}

/// Number of lines of the verifier's log in an error. The reason is at its end, after up to thousands of
/// lines.
const MAX_LOG_LINES: usize = 4;

impl From<ProgramError> for BpfError {
    fn from(error: ProgramError) -> Self {
        let ProgramError::LoadError { io_error, verifier_log } = error else {
            return Self::Program(error);
        };
        if io_error.kind() == ErrorKind::WouldBlock {
            return Self::Interrupted(io_error);
        }
        let log = verifier_log.to_string();
        if log.is_empty() {
            return Self::LoadDenied(io_error);
        }
        tracing::debug!(log, "the BPF verifier rejected a program");
        Self::VerifierRejected(log_tail(&log), io_error)
    }
}

/// Returns the last lines of a log, without the verifier's statistics.
fn log_tail(log: &str) -> String {
    let statistics = ["verification time ", "stack depth ", "processed "];
    let is_statistic = |line: &&str| statistics.iter().any(|statistic| line.starts_with(statistic));
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !is_statistic(line));
    let mut last: Vec<&str> = lines.rev().take(MAX_LOG_LINES).collect();
    last.reverse();
    last.join(" | ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn verifier_log_is_cut_to_its_last_lines() {
        let log = "1: (b7)\n2: (85) call x#1\ninvalid access to map value\nR3 min value is outside\n\
                   verification time 9 usec\nstack depth 8\nprocessed 3 insns (limit 1000000)\n";
        let expected =
            "1: (b7) | 2: (85) call x#1 | invalid access to map value | R3 min value is outside";
        assert_eq!(super::log_tail(log), expected);
        assert_eq!(super::log_tail(""), "");
    }
}

//! What can go wrong between us and the kernel.

use std::io::{self, ErrorKind};

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use snisplit_common::abi::{PACKET_ABI_VERSION, SOCKMAP_ABI_VERSION};
use thiserror::Error;

/// Why the kernel does not do what it should.
#[derive(Debug, Error)]
pub(crate) enum BpfError {
    #[error("the kernel's types (BTF) do not say where TCP keeps its numbers: {0}")]
    Btf(String),
    #[error("the object does not load (CAP_BPF and CAP_NET_ADMIN are needed)")]
    Load(#[from] EbpfError),
    #[error("the object lacks `{0}`")]
    MissingFromObject(&'static str),
    /// What the verifier said last, and the kernel's error.
    #[error("the verifier refuses the program (`--log debug` shows all it says): {0}")]
    VerifierRejected(String, #[source] io::Error),
    #[error("signals kept the verifier from its work: start again when none arrive")]
    Interrupted(#[source] io::Error),
    #[error("the kernel does not look at the program (CAP_BPF and CAP_NET_ADMIN are needed)")]
    LoadDenied(#[source] io::Error),
    #[error("the kernel refuses the program")]
    Program(#[source] ProgramError),
    #[error(
        "packet.hook: Linux has tcx since 6.6, and this one is older: write \"auto\" or \"clsact\""
    )]
    NoTcx,
    #[error("a map does not work")]
    Map(#[from] MapError),
    #[error("the program's log does not open")]
    Log(#[from] aya_log::Error),
    #[error(
        "the pins are of ABI version {0}, this snisplit is of {SOCKMAP_ABI_VERSION}: use the one that runs"
    )]
    AbiVersion(u32),
    #[error(
        "the flows in {1} are of a snisplit with packet ABI version {0}, this one is of \
         {PACKET_ABI_VERSION}: start that one again, or try `snisplit flows migrate`; \
         `snisplit flows purge` ends them"
    )]
    PacketAbiVersion(u32, String),
    #[error("an interface does not take the program")]
    Attach(#[from] LinkError),
    #[error("a pin does not work")]
    Pin(#[from] PinError),
    #[error("a socket or a ring does not work")]
    Socket(#[from] io::Error),
}

/// Of what the verifier says, the end tells what is wrong; what comes before can be a thousand lines.
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
        tracing::debug!(log, "the verifier refuses a program");
        Self::VerifierRejected(log_tail(&log), io_error)
    }
}

/// The last lines that are not figures of its work.
fn log_tail(log: &str) -> String {
    let statistics = ["verification time ", "stack depth ", "processed "];
    let is_statistic = |line: &&str| statistics.iter().any(|figure| line.starts_with(figure));
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

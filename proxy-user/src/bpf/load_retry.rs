//! Loading a program although signals arrive.

use std::io::ErrorKind;

use aya::programs::ProgramError;

use super::error::BpfError;

/// How often a program is given to the verifier. libbpf does it five times (`PROG_LOAD_ATTEMPTS`).
const MAX_LOAD_ATTEMPTS: usize = 10;

/// Loads a program. Where a signal is pending the verifier leaves off with EAGAIN (`do_check`,
/// kernel/bpf/verifier.c): it is enough that the process was stopped or frozen meanwhile. Then it begins
/// again; aya does so once only, and takes what comes of it for the verifier's verdict.
pub(super) fn load_program(
    mut attempt: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), BpfError> {
    for _ in 1..MAX_LOAD_ATTEMPTS {
        match attempt() {
            Err(error) if is_interrupted(&error) => {}
            done => return Ok(done?),
        }
    }
    Ok(attempt()?)
}

fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.kind() == ErrorKind::WouldBlock)
}

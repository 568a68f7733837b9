//! Repetition of loads that a signal has interrupted.

use std::io::ErrorKind;

use aya::programs::ProgramError;

use super::error::BpfError;

/// Number of attempts to load a program. libbpf makes five (`PROG_LOAD_ATTEMPTS`).
const MAX_LOAD_ATTEMPTS: usize = 10;

/// Loads a program, repeatedly if signals interrupt the verifier.
///
/// The verifier fails with EAGAIN while a signal is pending (`do_check`, kernel/bpf/verifier.c). A signal is
/// also pending after the process was stopped or frozen. The crate aya repeats the load once only, and
/// reports a second EAGAIN as the verifier's result.
///
/// # Errors
/// Fails if the verifier rejects the program, or after [`MAX_LOAD_ATTEMPTS`] interruptions.
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

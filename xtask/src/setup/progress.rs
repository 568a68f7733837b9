//! Messages of set-up.

/// Prints one line about a subject.
pub(super) fn report(subject: &str, message: &str) {
    eprintln!("setup: {subject:<16} {message}");
}

//! Kernel versions on which forwarding by sockmap is known to go wrong, and what goes wrong there.
//!
//! A distribution may have mended its kernel without a new version, or broken it: what decides is a
//! trial. The version says why the trial should fail, or that it may only have been lucky.

/// A version: the release's first three numbers, `6.1.32` of `6.1.32-amd64`.
type Version = (u16, u16, u16);

struct Fault {
    /// The first release with the fault.
    from: Version,
    /// The first release without it.
    until: Version,
    words: &'static str,
}

const DROPS: &str = "Linux before 5.10 drops redirected bytes that a slow receiver has no room for \
    (sk_psock_backlog, mended by the series around 9047f19e7ccb)";
const DOUBLES: &str = "Linux 6.1.32 to 6.1.141 and 6.4 to 6.15.1 (6.12 to 6.12.33) send redirected \
    bytes twice when the receiver is slow (sk_psock_backlog, broken by 405df89dd52c)";
const DOUBLES_6_6: &str = "Linux 6.6 sends redirected bytes twice when the receiver is slow, up to a \
    stable release that we do not know (sk_psock_backlog, broken by 405df89dd52c)";

/// In the order of versions; `until` of one series ends before the next begins.
const FAULTS: [Fault; 7] = [
    Fault { from: (0, 0, 0), until: (5, 10, 0), words: DROPS },
    Fault { from: (6, 1, 32), until: (6, 1, 142), words: DOUBLES },
    Fault { from: (6, 4, 0), until: (6, 6, 0), words: DOUBLES },
    Fault { from: (6, 6, 0), until: (6, 7, 0), words: DOUBLES_6_6 },
    Fault { from: (6, 7, 0), until: (6, 12, 34), words: DOUBLES },
    Fault { from: (6, 13, 0), until: (6, 15, 0), words: DOUBLES },
    Fault { from: (6, 15, 0), until: (6, 15, 2), words: DOUBLES },
];

/// What is known to be wrong with a release, as `uname -r` prints it. `None` also for one that is not
/// understood.
///
/// ```
/// use snisplit_common::kernels::known_fault;
/// assert!(known_fault("6.12.33+deb13-amd64").is_some());
/// assert_eq!(known_fault("6.12.34"), None);
/// ```
pub fn known_fault(release: &str) -> Option<&'static str> {
    let version = version(release)?;
    let fault = FAULTS.iter().find(|fault| (fault.from..fault.until).contains(&version));
    fault.map(|fault| fault.words)
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some((major, minor, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::{FAULTS, known_fault, version};

    #[test]
    fn releases_as_distributions_name_them() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1, 0)));
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18, 44)));
        assert_eq!(version("5.15"), Some((5, 15, 0)));
        assert_eq!(version("6.15-rc3"), Some((6, 15, 0)));
        assert_eq!(version("mainline"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn faults_begin_and_end_where_they_should() {
        let bad = ["5.4.0", "6.1.32", "6.1.141", "6.4.0", "6.6.30", "6.11", "6.12.33", "6.14.9"];
        let good = ["5.10.223", "5.15.0", "6.1.31", "6.1.142", "6.3.9", "6.12.34", "6.15.2", "7.3"];
        bad.iter().for_each(|release| assert!(known_fault(release).is_some(), "{release}"));
        good.iter().for_each(|release| assert_eq!(known_fault(release), None, "{release}"));
        assert!(FAULTS.is_sorted_by(|a, b| a.until <= b.from), "each release has one fault");
    }
}

//! Kernel releases with known bugs of sockmap.
//!
//! A distribution may fix or break its kernel without a new version number. So the self-test decides whether
//! the agent uses sockmap. The release explains a failed test, or warns that the test may have passed by chance.

/// First three numbers of a release: `6.1.32` of `6.1.32-amd64`.
type Version = (u16, u16, u16);

struct KernelBug {
    /// First release with the bug.
    first_affected: Version,
    /// First release without it.
    first_fixed: Version,
    description: &'static str,
}

const DROPS_BYTES: &str = "Linux before 5.10 drops redirected bytes that a slow receiver has no room for \
    (sk_psock_backlog, fixed by the series around 9047f19e7ccb)";
const DUPLICATES_BYTES: &str = "Linux 6.1.32 to 6.1.141 and 6.4 to 6.15.1 (6.12 to 6.12.33) send redirected \
    bytes twice when the receiver is slow (sk_psock_backlog, broken by 405df89dd52c)";
const DUPLICATES_BYTES_6_6: &str = "Linux 6.6 sends redirected bytes twice when the receiver is slow, up to a \
    stable release that is not known (sk_psock_backlog, broken by 405df89dd52c)";

/// Known bugs in the order of versions. The ranges do not overlap.
const KERNEL_BUGS: [KernelBug; 7] = [
    KernelBug { first_affected: (0, 0, 0), first_fixed: (5, 10, 0), description: DROPS_BYTES },
    KernelBug {
        first_affected: (6, 1, 32),
        first_fixed: (6, 1, 142),
        description: DUPLICATES_BYTES,
    },
    KernelBug { first_affected: (6, 4, 0), first_fixed: (6, 6, 0), description: DUPLICATES_BYTES },
    KernelBug {
        first_affected: (6, 6, 0),
        first_fixed: (6, 7, 0),
        description: DUPLICATES_BYTES_6_6,
    },
    KernelBug {
        first_affected: (6, 7, 0),
        first_fixed: (6, 12, 34),
        description: DUPLICATES_BYTES,
    },
    KernelBug {
        first_affected: (6, 13, 0),
        first_fixed: (6, 15, 0),
        description: DUPLICATES_BYTES,
    },
    KernelBug {
        first_affected: (6, 15, 0),
        first_fixed: (6, 15, 2),
        description: DUPLICATES_BYTES,
    },
];

/// Returns the description of the known bug of a release, in the form of `uname -r`. `None`: there is none,
/// or the release has an unknown form.
///
/// ```
/// use snisplit_common::kernel_bugs::known_bug;
/// assert!(known_bug("6.12.33+deb13-amd64").is_some());
/// assert_eq!(known_bug("6.12.34"), None);
/// ```
pub fn known_bug(release: &str) -> Option<&'static str> {
    let version = parse_version(release)?;
    let bug =
        KERNEL_BUGS.iter().find(|bug| (bug.first_affected..bug.first_fixed).contains(&version));
    bug.map(|bug| bug.description)
}

fn parse_version(release: &str) -> Option<Version> {
    let mut numbers = release.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some((major, minor, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::{KERNEL_BUGS, known_bug, parse_version};

    #[test]
    fn releases_as_distributions_name_them() {
        assert_eq!(parse_version("6.1.0-18-amd64"), Some((6, 1, 0)));
        assert_eq!(parse_version("6.18.44-fc-v595"), Some((6, 18, 44)));
        assert_eq!(parse_version("5.15"), Some((5, 15, 0)));
        assert_eq!(parse_version("6.15-rc3"), Some((6, 15, 0)));
        assert_eq!(parse_version("mainline"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn known_bugs_cover_exactly_the_affected_releases() {
        let bad = ["5.4.0", "6.1.32", "6.1.141", "6.4.0", "6.6.30", "6.11", "6.12.33", "6.14.9"];
        let good = ["5.10.223", "5.15.0", "6.1.31", "6.1.142", "6.3.9", "6.12.34", "6.15.2", "7.3"];
        bad.iter().for_each(|release| assert!(known_bug(release).is_some(), "{release}"));
        good.iter().for_each(|release| assert_eq!(known_bug(release), None, "{release}"));
        assert!(
            KERNEL_BUGS.is_sorted_by(|a, b| a.first_fixed <= b.first_affected),
            "each release has one such bug at most"
        );
    }
}

//! Names of the packet engine's pins in bpffs, and names that older ABI versions used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use snisplit_common::abi::packet::{
    PACKET_ABI_MAP, PACKET_COUNTERS_MAP, PACKET_FLOWS_MAP, PACKET_INTERFACES_MAP,
    PACKET_ROUTES_MAP, PACKET_TUPLES_MAP, RESET_REQUESTS_MAP,
};

/// Maps that outlive the agent, so that its flows do. `bpftool` shows them too.
pub(super) const PINNED_MAPS: [&str; 7] = [
    PACKET_ABI_MAP,
    PACKET_FLOWS_MAP,
    PACKET_TUPLES_MAP,
    PACKET_ROUTES_MAP,
    PACKET_COUNTERS_MAP,
    RESET_REQUESTS_MAP,
    PACKET_INTERFACES_MAP,
];

/// Pin of the new flow table while `flows migrate` fills it.
pub(super) const NEW_FLOWS_PIN: &str = "packet_flows_new";

const INGRESS_PREFIX: &str = "in_";
const EGRESS_PREFIX: &str = "out_";
const XDP_PREFIX: &str = "xdp_";

/// Pin of [`PACKET_INTERFACES_MAP`] before ABI version 5.
pub(in crate::bpf) const OLD_INTERFACES_PIN: &str = "packet_links";
/// Pins of maps that ABI version 5 renamed: the old name, and the present one.
const RENAMED_MAPS: [(&str, &str); 2] =
    [("packet_cuts", RESET_REQUESTS_MAP), (OLD_INTERFACES_PIN, PACKET_INTERFACES_MAP)];
/// [`XDP_PREFIX`] before ABI version 5.
const OLD_XDP_PREFIX: &str = "early_";

/// Returns the pin of a TC program's link at an interface.
pub(super) fn tc_pin(dir: &Path, attach_type: TcAttachType, ifindex: u32) -> PathBuf {
    let is_ingress = matches!(attach_type, TcAttachType::Ingress);
    let prefix = if is_ingress { INGRESS_PREFIX } else { EGRESS_PREFIX };
    dir.join(format!("{prefix}{ifindex}"))
}

/// Returns the pin of the XDP program's link at an interface.
pub(super) fn xdp_pin(dir: &Path, ifindex: u32) -> PathBuf {
    dir.join(format!("{XDP_PREFIX}{ifindex}"))
}

/// Whether the packet engine makes pins of this name, in this ABI version or in an older one.
pub(crate) fn is_own_pin(name: &str) -> bool {
    let prefixes = [INGRESS_PREFIX, EGRESS_PREFIX, XDP_PREFIX];
    PINNED_MAPS.contains(&name)
        || prefixes.iter().any(|prefix| name.starts_with(prefix))
        || present_name(name).is_some()
}

/// Renames the pins that have a name of ABI versions before 5. Pins that have their present name
/// stay as they are, so a call that was cut short can be repeated.
///
/// # Errors
/// Fails if bpffs does not list or rename the pins.
pub(super) fn rename_old_pins(dir: &Path) -> io::Result<()> {
    let names = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name()));
    for name in names.collect::<io::Result<Vec<_>>>()? {
        if let Some(new) = name.to_str().and_then(present_name) {
            fs::rename(dir.join(&name), dir.join(new))?;
        }
    }
    Ok(())
}

/// Returns the present name of a pin that had another one before ABI version 5.
fn present_name(old: &str) -> Option<String> {
    if let Some((_, new)) = RENAMED_MAPS.iter().find(|(name, _)| *name == old) {
        return Some((*new).to_owned());
    }
    old.strip_prefix(OLD_XDP_PREFIX).map(|ifindex| format!("{XDP_PREFIX}{ifindex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_pins_are_recognized_and_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let old = ["packet_abi", "packet_cuts", "packet_links", "early_7", "in_7", "out_7"];
        for name in old {
            assert!(is_own_pin(name), "{name}");
            fs::write(dir.path().join(name), name).unwrap();
        }
        for _ in 0..2 {
            rename_old_pins(dir.path()).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        let expected = ["in_7", "out_7", "packet_abi", "packet_ifaces", "packet_resets", "xdp_7"];
        assert_eq!(names, expected);
        assert!(!is_own_pin("flows"), "a pin of the sockmap engine");
    }
}

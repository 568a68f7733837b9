//! Plan of where the packet engine's programs are attached.

use std::collections::BTreeMap;
use std::fmt;

use aya::util::KernelVersion;

use crate::bpf::error::BpfError;

/// Interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachTarget {
    /// Name of the interface.
    pub(crate) name: String,
    /// Index of the interface.
    pub(crate) ifindex: u32,
    /// Whether it is one end of a veth pair, and the other end is in another network namespace.
    pub(crate) peer_in_other_netns: bool,
    /// Whether to attach the XDP program to its driver.
    pub(crate) use_xdp: bool,
}

/// Place of the TC programs at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// tcx, since Linux 6.6: runs before all TC filters. A program is replaced without a gap.
    Tcx,
    /// A filter on each side of the `clsact` queueing discipline.
    Clsact,
}

impl Hook {
    /// Every hook.
    pub(super) const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];

    /// Whether the running kernel has tcx.
    pub(crate) fn is_tcx_supported() -> bool {
        KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
    }
}

/// As the value of `packet.hook`.
impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Interfaces and the hook to attach to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AttachPlan {
    targets: Vec<AttachTarget>,
    hook: Hook,
}

/// What remains of an earlier attachment at one interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remainder {
    /// Hook that stays in use. `None`: the plan does not contain the interface.
    pub(super) hook: Option<Hook>,
    /// Whether the XDP program stays.
    pub(super) xdp: bool,
}

impl AttachPlan {
    /// Plans to attach to `targets`. Without `requested_hook` it takes the best that the kernel has.
    ///
    /// # Errors
    /// Fails if tcx is requested and the kernel does not have it.
    pub(crate) fn new(
        targets: Vec<AttachTarget>,
        requested_hook: Option<Hook>,
        is_tcx_supported: bool,
    ) -> Result<Self, BpfError> {
        let hook = match (requested_hook, is_tcx_supported) {
            (Some(Hook::Tcx), false) => return Err(BpfError::NoTcx),
            (Some(hook), _) => hook,
            (None, true) => Hook::Tcx,
            (None, false) => Hook::Clsact,
        };
        Ok(Self { targets, hook })
    }

    /// Interfaces to attach to.
    pub(crate) fn targets(&self) -> &[AttachTarget] {
        &self.targets
    }

    /// Hook of the TC programs.
    pub(crate) const fn hook(&self) -> Hook {
        self.hook
    }

    /// Interfaces whose drivers get the XDP program.
    pub(crate) fn xdp_targets(&self) -> impl Iterator<Item = &AttachTarget> {
        self.targets.iter().filter(|target| target.use_xdp)
    }

    /// Returns what remains of an earlier attachment to the interfaces `previous`, by interface index.
    pub(super) fn remainders(&self, previous: &[u32]) -> BTreeMap<u32, Remainder> {
        let remainder = |ifindex: &u32| {
            let target = self.targets.iter().find(|target| target.ifindex == *ifindex);
            let hook = target.map(|_| self.hook);
            (*ifindex, Remainder { hook, xdp: target.is_some_and(|target| target.use_xdp) })
        };
        previous.iter().map(remainder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(ifindex: u32, use_xdp: bool) -> AttachTarget {
        AttachTarget { name: format!("eth{ifindex}"), ifindex, peer_in_other_netns: false, use_xdp }
    }

    #[test]
    fn hook_is_the_requested_one_or_the_best() {
        let hook = |requested, is_tcx_supported| {
            AttachPlan::new(vec![], requested, is_tcx_supported).map(|plan| plan.hook)
        };
        assert!(matches!(hook(None, true), Ok(Hook::Tcx)));
        assert!(matches!(hook(None, false), Ok(Hook::Clsact)));
        assert!(matches!(hook(Some(Hook::Tcx), true), Ok(Hook::Tcx)));
        assert!(matches!(hook(Some(Hook::Tcx), false), Err(BpfError::NoTcx)));
        assert!(matches!(hook(Some(Hook::Clsact), true), Ok(Hook::Clsact)));
    }

    #[test]
    fn xdp_targets_are_those_with_a_capable_driver() {
        let plan = AttachPlan::new(vec![target(2, false), target(3, true)], None, true).unwrap();
        let xdp: Vec<u32> = plan.xdp_targets().map(|target| target.ifindex).collect();
        assert_eq!((plan.targets().len(), xdp), (2, vec![3]));
    }

    #[test]
    fn only_planned_attachments_remain() {
        let targets = vec![target(2, false), target(3, true), target(4, true)];
        let plan = AttachPlan::new(targets, Some(Hook::Clsact), true).unwrap();
        let expected = [
            (2, Remainder { hook: Some(Hook::Clsact), xdp: false }),
            (3, Remainder { hook: Some(Hook::Clsact), xdp: true }),
            (9, Remainder { hook: None, xdp: false }),
        ];
        assert_eq!(plan.remainders(&[9, 3, 2]), BTreeMap::from(expected));
        assert_eq!(plan.remainders(&[]), BTreeMap::new());
    }
}

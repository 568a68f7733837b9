//! A network namespace, which is removed when it is dropped.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::wait::wait_until;

#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(role: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sp-{}-{number}{role}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        let inside = move || {
            let namespace = File::open(path).unwrap();
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
            act()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}

/// Waits until the calling thread's namespace answers neighbour solicitations for its address on a link. `host` is the last
/// byte of the address.
///
/// A kernel worker joins the multicast group once the link is up (`addrconf_dad_work`), seconds later on a busy machine.
/// A peer that asks before gets no answer, and EHOSTUNREACH after three attempts.
pub(crate) fn wait_for_ipv6(link: &str, host: u8) {
    let (link, group) =
        (format!(" {link} "), format!(" ff0200000000000000000001ff0000{host:02x} "));
    wait_until("an IPv6 address that answers", || {
        let groups = fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
        let is_ours = |line: &str| line.contains(&link) && line.contains(&group);
        groups.lines().any(is_ours).then_some(())
    });
}

/// Runs ip(8).
pub(crate) fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().unwrap();
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

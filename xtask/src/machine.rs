//! The root suite on another kernel, in a virtual machine that QEMU emulates.
//!
//! Emulation is slow and needs no KVM. virtme-ng gives the machine read access to the files of the host.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::root;
use crate::setup::{self, Kernel};
use crate::suite::{self, Selection, SuiteTotals, TEST_THREADS, Tools};

/// Factor for the deadlines of the tests.
const TIMEOUT_FACTOR: &str = "SNISPLIT_TIMEOUT_FACTOR=15";

/// Hardware addresses of the NICs. A hub joins the first two, another one the last two.
const NICS: [&str; 4] =
    ["52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03", "52:54:00:00:00:04"];

/// Runs the root suite alone on a kernel of Debian's, such as `6.1`.
///
/// # Errors
/// Fails if the machine does not boot, or if a test program fails or does not finish.
pub(crate) fn test(kernel: &str, selection: Selection, peers: &Path) -> Result<()> {
    let machine = Machine::new(kernel)?;
    // An unoptimised agent takes half a minute to load its programs in an emulated machine.
    let agent = suite::release_agent()?;
    let tools = Tools { agent: &agent, peers };
    let mut totals = SuiteTotals::new(&suite::skips());
    let mut commands = suite::root_commands(&suite::build_root_tests()?, &tools, selection)?;
    let on_nics: Vec<_> = commands
        .iter()
        .filter(|(title, _)| title == "packet_xdp")
        .map(|(title, command)| (format!("{title}, NICs"), on_nics(command)))
        .collect();
    commands.extend(on_nics);
    totals.run(&mut machine.command(&commands)?)?;
    let (all, finished) = (commands.len(), totals.finished_programs);
    ensure!(finished == all, "{} of {all} test programs did not finish", all - finished);
    totals.close(&[])
}

struct Machine {
    kernel: Kernel,
}

impl Machine {
    fn new(version: &str) -> Result<Self> {
        Ok(Self { kernel: setup::kernel(version)? })
    }

    /// A command that boots the machine, runs these commands as root one after the other, and turns it
    /// off. Its exit status is that of the last command.
    fn command(&self, commands: &[(String, Command)]) -> Result<Command> {
        let script = root().join("target/machine.sh");
        let lines = commands.iter().map(|(name, command)| {
            format!("echo '+ {name}'\n{TIMEOUT_FACTOR} {}\n", shell_line(command))
        });
        fs::write(&script, lines.collect::<String>())?;
        let path = env::var("PATH").unwrap_or_default();
        let mut machine = Command::new(self.kernel.programs.join("vng"));
        machine
            .env("PATH", format!("{}:{path}", self.kernel.programs.display()))
            .current_dir(root());
        machine.arg("--run").arg(&self.kernel.image).args(["--disable-kvm", "--user", "root"]);
        machine.args(["--cpus", "2", "--memory", "6G"]);
        for (number, address) in NICS.iter().enumerate() {
            let hub = number / 2;
            machine.arg(format!("--qemu-opts=-netdev hubport,id=nic{number},hubid={hub}"));
            let nic = format!("virtio-net-pci,netdev=nic{number},mac={address}");
            machine.arg(format!("--qemu-opts=-device {nic}"));
        }
        machine.arg(format!("--rwdir={}", root().join("target").display()));
        machine.arg("--").arg(format!("sh {} 2>&1", quoted(&script.to_string_lossy())));
        Ok(machine)
    }
}

/// The same command in the network namespace of the machine, which has the NICs. One test runs at a time.
fn on_nics(command: &Command) -> Command {
    let mut other = Command::new(command.get_program());
    other.arg(format!("SNISPLIT_NICS={}", NICS.join(",")));
    other.args(
        command.get_args().filter(|word| !["--net", TEST_THREADS].iter().any(|one| word == one)),
    );
    other.arg("--test-threads=1");
    other
}

/// A command as a line for a shell.
fn shell_line(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    all.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_shell_reads_the_same_words() {
        let words = ["printf", "%s|", "it's", "a \"$HOME\"", ""];
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let output =
            Command::new("sh").arg("-c").arg(super::shell_line(&command)).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's|a \"$HOME\"||");
    }
}

//! Another kernel, in a machine that QEMU emulates: slow, and the same wherever it runs. virtme-ng gives it
//! this machine's files, to read.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::root;
use crate::setup;
use crate::suite::{AT_ONCE, Total, build_agent, of_root};

/// How much longer than here things may take there.
const PATIENCE: &str = "SNISPLIT_TIMEOUT_FACTOR=15";

/// Of the NICs that it has: the first two are joined, and the others.
const NICS: [&str; 4] =
    ["52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03", "52:54:00:00:00:04"];

/// The root suite alone, on another kernel.
pub(crate) fn test(kernel: &str, filter: Option<&str>, engine: Option<&str>) -> Result<()> {
    let peers = setup::all()?;
    let machine = Machine::new(kernel)?;
    let mut total = Total::default();
    // Emulated, an unoptimised one takes half a minute to load its programs.
    let agent = build_agent("release")?;
    let mut commands = of_root((&agent, &peers), filter, engine)?;
    let of_drivers = commands.iter().filter(|(name, _)| name == "packet_xdp");
    let on_nics: Vec<_> =
        of_drivers.map(|(name, command)| (format!("{name}, NICs"), on_nics(command))).collect();
    commands.extend(on_nics);
    total.run(&mut machine.run(&commands)?)?;
    let (all, closed) = (commands.len(), total.closed);
    ensure!(closed == all, "{} of {all} programs of tests did not come to their end", all - closed);
    total.close()
}

struct Machine {
    image: PathBuf,
    programs: PathBuf,
}

impl Machine {
    /// One with a kernel of Debian's, such as `6.1`.
    fn new(version: &str) -> Result<Self> {
        let (image, programs) = setup::kernel(version)?;
        Ok(Self { image, programs })
    }

    /// Boots it, runs these one after the other, as root, and turns it off. It ends as the last one does.
    fn run(&self, commands: &[(String, Command)]) -> Result<Command> {
        let script = root().join("target/machine.sh");
        let lines = commands
            .iter()
            .map(|(name, command)| format!("echo '+ {name}'\n{PATIENCE} {}\n", line(command)));
        fs::write(&script, lines.collect::<String>())?;
        let path = env::var("PATH").unwrap_or_default();
        let mut machine = Command::new(self.programs.join("vng"));
        machine.env("PATH", format!("{}:{path}", self.programs.display())).current_dir(root());
        machine.arg("--run").arg(&self.image).args(["--disable-kvm", "--user", "root"]);
        machine.args(["--cpus", "2", "--memory", "6G"]);
        for (number, address) in NICS.iter().enumerate() {
            let cable = number / 2;
            machine.arg(format!("--qemu-opts=-netdev hubport,id=nic{number},hubid={cable}"));
            let nic = format!("virtio-net-pci,netdev=nic{number},mac={address}");
            machine.arg(format!("--qemu-opts=-device {nic}"));
        }
        machine.arg(format!("--rwdir={}", root().join("target").display()));
        machine.arg("--").arg(format!("sh {} 2>&1", quoted(&script.to_string_lossy())));
        Ok(machine)
    }
}

/// The same in the network of the machine, where its NICs are, and so one test after the other.
fn on_nics(command: &Command) -> Command {
    let mut other = Command::new(command.get_program());
    other.arg(format!("SNISPLIT_NICS={}", NICS.join(",")));
    other.args(command.get_args().filter(|word| !["--net", AT_ONCE].iter().any(|one| word == one)));
    other.arg("--test-threads=1");
    other
}

/// For a shell.
fn line(command: &Command) -> String {
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
    fn a_shell_reads_the_words_that_were_meant() {
        let words = ["printf", "%s|", "it's", "a \"$HOME\"", ""];
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let said = Command::new("sh").arg("-c").arg(super::line(&command)).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "it's|a \"$HOME\"||");
    }
}

//! What is on a wire, as tcpdump sees it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use etherparse::TcpHeader;
use pcap_file::pcap::PcapReader;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Lab;
use crate::segment::{header, parse};
use crate::wait::until;

/// Kibibytes that may wait for tcpdump.
const BUFFER: &str = "65536";
/// A port that nobody listens on: what comes from it marks the end of a capture.
const MARK: u16 = 9;

/// A capture that runs.
pub struct Capture {
    side: Side,
    tcpdump: Child,
    told: BufReader<ChildStderr>,
    file: PathBuf,
}

/// At which end of the lab.
#[derive(Clone, Copy)]
pub enum Side {
    /// The client's.
    Client,
    /// The back ends'.
    Backends,
}

impl Side {
    /// The namespace, its interface, and the proxy as it is seen from there.
    fn place(self, lab: &Lab) -> (&str, &'static str, Ipv4Addr) {
        match self {
            Self::Client => (lab.names()[0], "to-1001", Ipv4Addr::new(10, 91, 1, 1)),
            Self::Backends => (lab.names()[2], "to-2001", Ipv4Addr::new(10, 91, 2, 1)),
        }
    }
}

impl Capture {
    /// Begins to keep the TCP packets of one side: all, or those that arrive (`in`).
    pub fn start(lab: &Lab, side: Side, which: &str) -> Self {
        let (namespace, interface, _) = side.place(lab);
        let file = lab.folder().join(format!("{interface}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args(["-i", interface, "-Z", "root", "-B", BUFFER, "-U", "-w"]).arg(&file);
        command.args(["-Q", which, "tcp"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = lab.inside(namespace, || command.spawn()).expect("tcpdump");
        let mut told = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(told.read_line(&mut line).unwrap() > 0, "tcpdump has ended");
        }
        Self { side, tcpdump, told, file }
    }

    /// Ends it when all until now is in its file, and shows that packet by packet.
    fn stop(mut self, lab: &Lab, see: impl FnMut(&[u8])) {
        let (namespace, _, proxy) = self.side.place(lab);
        lab.inside(namespace, || TcpStream::connect((proxy, MARK))).unwrap_err();
        until("the mark to be captured", || self.read(|_| ()).then_some(()));
        kill_process(Pid::from_child(&self.tcpdump), Signal::INT).unwrap();
        let told: Vec<String> =
            BufReader::new(&mut self.told).lines().map(Result::unwrap).collect();
        self.tcpdump.wait().unwrap();
        let is_whole = told.iter().any(|line| line == "0 packets dropped by kernel");
        assert!(is_whole, "{told:?}");
        self.read(see);
    }

    /// Shows what is in the file, but for the mark; whether that is.
    fn read(&self, mut see: impl FnMut(&[u8])) -> bool {
        let mut is_marked = false;
        let Ok(mut reader) = PcapReader::new(File::open(&self.file).unwrap()) else { return false };
        // The last one may not be whole yet.
        while let Some(Ok(packet)) = reader.next_packet() {
            let (tcp, _) = header(&packet.data);
            match [tcp.source_port, tcp.destination_port].contains(&MARK) {
                true => is_marked |= tcp.source_port == MARK,
                false => see(&packet.data),
            }
        }
        is_marked
    }

    /// Ends it: segments with their data's length, whose sums are not looked at: what has not left a
    /// host may have none.
    pub fn segments(self, lab: &Lab) -> Vec<(TcpHeader, usize)> {
        let mut all = Vec::new();
        self.stop(lab, |packet| all.push(header(packet)));
        all
    }

    /// Ends it: how many packets there were, and how many of them resets. All sums are right.
    pub fn summed(self, lab: &Lab) -> (usize, usize) {
        let (mut all, mut resets) = (0, 0);
        self.stop(lab, |packet| {
            all += 1;
            resets += usize::from(parse(packet).2.rst);
        });
        (all, resets)
    }
}

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
use crate::segment::{parse_verified, tcp_header};
use crate::wait::wait_until;

/// Kibibytes that may wait for tcpdump.
const BUFFER_KIB: &str = "65536";
/// A port that nobody listens on: what comes from it marks the end of a capture.
const MARKER_PORT: u16 = 9;

/// A capture that runs.
pub struct Capture {
    point: CapturePoint,
    tcpdump: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

/// At which end of the lab.
#[derive(Clone, Copy)]
pub enum CapturePoint {
    /// The client's.
    Client,
    /// The back ends'.
    Backends,
}

impl CapturePoint {
    /// The namespace, its interface, and the proxy as it is seen from there.
    fn location(self, lab: &Lab) -> (&str, &'static str, Ipv4Addr) {
        match self {
            Self::Client => (lab.namespace_names()[0], "to-1001", Ipv4Addr::new(10, 91, 1, 1)),
            Self::Backends => (lab.namespace_names()[2], "to-2001", Ipv4Addr::new(10, 91, 2, 1)),
        }
    }
}

impl Capture {
    /// Begins to keep the TCP packets of one side: all, or those that arrive (`in`).
    pub fn start(lab: &Lab, point: CapturePoint, which: &str) -> Self {
        let (namespace, interface, _) = point.location(lab);
        let file = lab.dir().join(format!("{interface}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args(["-i", interface, "-Z", "root", "-B", BUFFER_KIB, "-U", "-w"]).arg(&file);
        command.args(["-Q", which, "tcp"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = lab.in_namespace(namespace, || command.spawn()).expect("tcpdump");
        let mut stderr = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "tcpdump has ended");
        }
        Self { point, tcpdump, stderr, file }
    }

    /// Ends it when all until now is in its file, and shows that packet by packet.
    fn stop(mut self, lab: &Lab, visit: impl FnMut(&[u8])) {
        let (namespace, _, proxy) = self.point.location(lab);
        lab.in_namespace(namespace, || TcpStream::connect((proxy, MARKER_PORT))).unwrap_err();
        wait_until("the mark to be captured", || self.read_packets(|_| ()).then_some(()));
        kill_process(Pid::from_child(&self.tcpdump), Signal::INT).unwrap();
        let messages: Vec<String> =
            BufReader::new(&mut self.stderr).lines().map(Result::unwrap).collect();
        self.tcpdump.wait().unwrap();
        let is_whole = messages.iter().any(|line| line == "0 packets dropped by kernel");
        assert!(is_whole, "{messages:?}");
        self.read_packets(visit);
    }

    /// Shows what is in the file, but for the mark; whether that is.
    fn read_packets(&self, mut visit: impl FnMut(&[u8])) -> bool {
        let mut has_marker = false;
        let Ok(mut reader) = PcapReader::new(File::open(&self.file).unwrap()) else { return false };
        // The last one may not be whole yet.
        while let Some(Ok(packet)) = reader.next_packet() {
            let (tcp, _) = tcp_header(&packet.data);
            match [tcp.source_port, tcp.destination_port].contains(&MARKER_PORT) {
                true => has_marker |= tcp.source_port == MARKER_PORT,
                false => visit(&packet.data),
            }
        }
        has_marker
    }

    /// Ends it: segments with their data's length, whose sums are not looked at: what has not left a
    /// host may have none.
    pub fn segments(self, lab: &Lab) -> Vec<(TcpHeader, usize)> {
        let mut all = Vec::new();
        self.stop(lab, |packet| all.push(tcp_header(packet)));
        all
    }

    /// Ends it: how many packets there were, and how many of them resets. All sums are right.
    pub fn packets_and_resets(self, lab: &Lab) -> (usize, usize) {
        let (mut all, mut resets) = (0, 0);
        self.stop(lab, |packet| {
            all += 1;
            resets += usize::from(parse_verified(packet).tcp.rst);
        });
        (all, resets)
    }
}

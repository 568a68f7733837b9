//! Packets on a link, captured by tcpdump.

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

/// Capture buffer of tcpdump, in KiB.
const BUFFER_KIB: &str = "65536";
/// Port without a listener. A reset from this port marks the end of a capture.
const MARKER_PORT: u16 = 9;

/// A running capture.
pub struct Capture {
    point: CapturePoint,
    tcpdump: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

/// End of the lab that packets are captured at.
#[derive(Clone, Copy)]
pub enum CapturePoint {
    /// The client's interface.
    Client,
    /// The back ends' interface.
    Backends,
}

impl CapturePoint {
    /// Namespace and interface, and the proxy's address on that link.
    fn location(self, lab: &Lab) -> (&str, &'static str, Ipv4Addr) {
        match self {
            Self::Client => (lab.namespace_names()[0], "to-1001", Ipv4Addr::new(10, 91, 1, 1)),
            Self::Backends => (lab.namespace_names()[2], "to-2001", Ipv4Addr::new(10, 91, 2, 1)),
        }
    }
}

impl Capture {
    /// Starts to capture TCP packets: those that arrive (`in`), or all (`inout`).
    pub fn start(lab: &Lab, point: CapturePoint, direction: &str) -> Self {
        let (namespace, interface, _) = point.location(lab);
        let file = lab.dir().join(format!("{interface}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args(["-i", interface, "-Z", "root", "-B", BUFFER_KIB, "-U", "-w"]).arg(&file);
        command.args(["-Q", direction, "tcp"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = lab.in_namespace(namespace, || command.spawn()).expect("tcpdump");
        let mut stderr = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "tcpdump has ended");
        }
        Self { point, tcpdump, stderr, file }
    }

    /// Stops the capture when all packets until now are in the file, and calls `visit` with each of them.
    fn stop(mut self, lab: &Lab, visit: impl FnMut(&[u8])) {
        let (namespace, _, proxy) = self.point.location(lab);
        lab.in_namespace(namespace, || TcpStream::connect((proxy, MARKER_PORT))).unwrap_err();
        wait_until("the end mark to be captured", || self.read_packets(|_| ()).then_some(()));
        kill_process(Pid::from_child(&self.tcpdump), Signal::INT).unwrap();
        let messages: Vec<String> =
            BufReader::new(&mut self.stderr).lines().map(Result::unwrap).collect();
        self.tcpdump.wait().unwrap();
        let is_complete = messages.iter().any(|line| line == "0 packets dropped by kernel");
        assert!(is_complete, "{messages:?}");
        self.read_packets(visit);
    }

    /// Calls `visit` with each packet in the file but the end mark. Returns whether the file has that mark.
    fn read_packets(&self, mut visit: impl FnMut(&[u8])) -> bool {
        let mut has_marker = false;
        let Ok(mut reader) = PcapReader::new(File::open(&self.file).unwrap()) else { return false };
        // The last packet may be incomplete.
        while let Some(Ok(packet)) = reader.next_packet() {
            let (tcp, _) = tcp_header(&packet.data);
            match [tcp.source_port, tcp.destination_port].contains(&MARKER_PORT) {
                true => has_marker |= tcp.source_port == MARKER_PORT,
                false => visit(&packet.data),
            }
        }
        has_marker
    }

    /// Stops the capture. Returns the TCP headers with the lengths of their data, with unverified checksums: a packet that
    /// has not left its host may have a partial one.
    pub fn segments(self, lab: &Lab) -> Vec<(TcpHeader, usize)> {
        let mut all = Vec::new();
        self.stop(lab, |packet| all.push(tcp_header(packet)));
        all
    }

    /// Stops the capture and verifies all checksums. Returns the number of packets, and of resets among them.
    pub fn packets_and_resets(self, lab: &Lab) -> (usize, usize) {
        let (mut all, mut resets) = (0, 0);
        self.stop(lab, |packet| {
            all += 1;
            resets += usize::from(parse_verified(packet).tcp.rst);
        });
        (all, resets)
    }
}

//! A minimal program at the attach point of the packet engine: it reads one field and redirects every IPv4 packet without a
//! change. The difference to it is what translation costs. Needs tcx (Linux 6.6).

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};

use aya::Ebpf;
use aya::programs::{SchedClassifier, TcAttachType};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};
use rustix::net::netdevice::name_to_index;
use snisplit_tests::lab::{CLIENT, Lab, PROXY};

use crate::links::ip;

/// The attached programs, for both directions. Nothing translates addresses, so the back ends have the proxy's address too.
/// Dropping it detaches the programs.
pub(crate) struct Redirect {
    _until_dropped: [Ebpf; 2],
    backends: String,
}

impl Redirect {
    pub(crate) fn start(lab: &Lab) -> Self {
        let backends = lab.namespace_names()[2].to_owned();
        let programs = lab.in_proxy(|| {
            [["to-1002", "to-2002"], ["to-2002", "to-1002"]].map(|[from, to]| attach(from, to))
        });
        // Without it, ARP requests for the router would have an address that the router has too.
        lab.in_backends(|| fs::write("/proc/sys/net/ipv4/conf/all/arp_announce", "2")).unwrap();
        set_proxy_address(&backends, "add");
        Self { _until_dropped: programs, backends }
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        set_proxy_address(&self.backends, "del");
    }
}

/// Adds the proxy's address to the back ends (`add`), or removes it (`del`).
fn set_proxy_address(backends: &str, verb: &str) {
    ip(&format!("-n {backends} addr {verb} {PROXY}/32 dev lo"));
    ip(&format!("-n {backends} route {verb} {CLIENT}/32 via 10.91.2.1"));
}

/// Attaches the program, which redirects packets from one interface to the peer of another.
fn attach(from: &str, to: &str) -> Ebpf {
    let any_socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let peer_of = name_to_index(any_socket, to).unwrap();
    let mut loaded = Ebpf::load(&build_object(peer_of)).unwrap();
    let program: &mut SchedClassifier =
        loaded.program_mut(PROGRAM_NAME).unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(from, TcAttachType::Ingress).unwrap();
    loaded
}

const PROGRAM_NAME: &str = "redirect";

/// Builds the object file of the program.
fn build_object(peer_of: u32) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = |object: &mut Object<'_>, name: &str, kind, data: &[u8]| {
        let section = object.add_section(Vec::new(), name.into(), kind);
        object.append_section_data(section, data, 8);
        section
    };
    let code = Vec::from_iter(instructions(peer_of).map(u64::to_le_bytes)).concat();
    let classifier = section(&mut object, "classifier", SectionKind::Text, &code);
    section(&mut object, "license", SectionKind::Data, b"GPL\0");
    object.add_symbol(Symbol {
        name: PROGRAM_NAME.into(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(classifier),
        flags: SymbolFlags::None,
    });
    object.write().unwrap()
}

/// Instructions, each as `struct bpf_insn` (include/uapi/linux/bpf.h).
fn instructions(peer_of: u32) -> [u64; 8] {
    const LOAD_WORD: u64 = 0x61;
    const JUMP_UNLESS_EQUAL: u64 = 0x55;
    const MOVE: u64 = 0xb7;
    const CALL: u64 = 0x85;
    const EXIT: u64 = 0x95;
    /// Offset of `protocol` in `struct __sk_buff`.
    const PROTOCOL: u64 = 16;
    const IPV4: u64 = 0x0800_u16.to_be() as u64;
    const BPF_REDIRECT_PEER: u64 = 155;
    const TCX_NEXT: u64 = u32::MAX as u64;
    let [r0, r1, r2] = [0_u64, 1, 2].map(|register| register << 8);
    let from_r1 = r1 << 4;
    [
        LOAD_WORD | r0 | from_r1 | PROTOCOL << 16,
        JUMP_UNLESS_EQUAL | r0 | 4 << 16 | IPV4 << 32,
        MOVE | r1 | u64::from(peer_of) << 32,
        MOVE | r2,
        CALL | BPF_REDIRECT_PEER << 32,
        EXIT,
        MOVE | r0 | TCX_NEXT << 32,
        EXIT,
    ]
}

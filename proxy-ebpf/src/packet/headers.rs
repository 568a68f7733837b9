//! Headers of a TCP segment, and their parser.

use core::ptr;

use snisplit_common::abi::packet::Tuple;

use super::frame::Frame;

/// Size of `struct ethhdr` in bytes.
pub(super) const ETH_HLEN: u32 = 14;
/// Size of `struct tcphdr` in bytes, without options.
pub(super) const TCP_HLEN: u32 = 20;
/// Largest size of TCP options in bytes.
pub(super) const MAX_OPTIONS_LEN: u32 = 40;

pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
/// Offset of a TCP header after an IPv4 header without options.
pub(super) const TCP_OFFSET_V4: u32 = ETH_HLEN + 20;
/// Offset of a TCP header after an IPv6 header without extension headers.
pub(super) const TCP_OFFSET_V6: u32 = ETH_HLEN + 40;
pub(super) const IPPROTO_TCP: u8 = 6;

pub(super) const TCPOPT_NOP: u8 = 1;
pub(super) const TCPOPT_TIMESTAMP: u8 = 8;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// ECN bits of an IP header. Both are set if the packet met congestion (RFC 3168 §5).
pub(super) const INET_ECN_MASK: u32 = 3;

/// `struct iphdr` without options. In this and the following headers, fields of more than one byte are
/// in network byte order.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Ipv4Header {
    pub(super) version_ihl: u8,
    pub(super) tos: u8,
    pub(super) total_len: u16,
    pub(super) id: u16,
    pub(super) frag_off: u16,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    pub(super) check: u16,
    pub(super) source: u32,
    pub(super) destination: u32,
}

/// `struct ipv6hdr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Ipv6Header {
    pub(super) version_tc_flow: u32,
    pub(super) payload_len: u16,
    pub(super) next_header: u8,
    pub(super) hop_limit: u8,
    pub(super) source: [u32; 4],
    pub(super) destination: [u32; 4],
}

/// `struct tcphdr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct TcpHeader {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) data_offset: u8,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) check: u16,
    pub(super) urgent_pointer: u16,
}

/// IP version of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Family {
    V4 = 4,
    V6 = 6,
}

/// A parsed TCP segment.
#[repr(C)]
pub(super) struct Segment {
    /// Addresses and ports of the segment.
    pub(super) tuple: Tuple,
    /// Header to translate. It equals the one in the packet, except for a challenge ACK and for ECN flags.
    pub(super) tcp: TcpHeader,
    pub(super) family: Family,
    /// Offset of the TCP header in bytes.
    pub(super) tcp_offset: u32,
    /// Time to live, or hop limit.
    pub(super) ttl: u32,
    /// Type of service, or traffic class.
    pub(super) traffic_class: u32,
    /// Size of the options in bytes, at most 40.
    pub(super) options_len: u32,
    /// Size of the data in bytes.
    pub(super) payload_len: u32,
    /// 1 if the segment can be translated. 0: it is a fragment, has IP options, or is truncated.
    pub(super) is_translatable: u32,
}

impl Segment {
    /// Parses a frame. `None`: it is not TCP directly in IP in Ethernet.
    #[inline(always)]
    pub(super) fn parse(&mut self, ctx: &impl Frame) -> Option<()> {
        let family = family(ctx)?;
        let ip_payload_len = match family {
            Family::V4 => self.parse_ipv4(ctx)?,
            Family::V6 => self.parse_ipv6(ctx)?,
        };
        self.family = family;
        self.tuple.source_port = u16::from_be(self.tcp.source);
        self.tuple.destination_port = u16::from_be(self.tcp.destination);
        let tcp_header_len = u32::from(self.tcp.data_offset >> 4) * 4;
        if tcp_header_len < TCP_HLEN || ip_payload_len < tcp_header_len {
            self.is_translatable = 0;
            return Some(());
        }
        (self.options_len, self.payload_len) =
            (tcp_header_len - TCP_HLEN, ip_payload_len - tcp_header_len);
        Some(())
    }

    /// Parses an IPv4 packet, and returns the number of bytes after the IP header.
    #[inline(always)]
    fn parse_ipv4(&mut self, ctx: &impl Frame) -> Option<u32> {
        // No TCP segment is shorter.
        let linear = ctx.pull_linear(TCP_OFFSET_V4 + TCP_HLEN)?;
        let ip: Ipv4Header = linear.get(ETH_HLEN);
        // The first fragment has ports too.
        let fragment = u16::from_be(ip.frag_off) & 0x3fff;
        if ip.protocol != IPPROTO_TCP || fragment & 0x1fff != 0 {
            return None;
        }
        let ip_header_len = u32::from(ip.version_ihl & 0xf) * 4;
        self.tcp_offset = ETH_HLEN + ip_header_len;
        self.tcp = if self.tcp_offset == TCP_OFFSET_V4 {
            linear.get(TCP_OFFSET_V4)
        } else {
            ctx.load(self.tcp_offset)?
        };
        store_v4_mapped(&mut self.tuple.source, ip.source);
        store_v4_mapped(&mut self.tuple.destination, ip.destination);
        (self.ttl, self.traffic_class) = (ip.ttl.into(), ip.tos.into());
        self.is_translatable = u32::from(fragment == 0 && ip_header_len == 20);
        let total_len = match u32::from(u16::from_be(ip.total_len)) {
            // More than 64 KiB (BIG TCP). Then the frame has no padding.
            0 => ctx.length().wrapping_sub(ETH_HLEN),
            total_len => total_len,
        };
        Some(total_len.wrapping_sub(ip_header_len))
    }

    /// Parses an IPv6 packet, and returns the number of bytes after the IP header.
    #[inline(always)]
    fn parse_ipv6(&mut self, ctx: &impl Frame) -> Option<u32> {
        let linear = ctx.pull_linear(TCP_OFFSET_V6 + TCP_HLEN)?;
        let ip: Ipv6Header = linear.get(ETH_HLEN);
        if ip.next_header != IPPROTO_TCP {
            return None;
        }
        self.tcp_offset = TCP_OFFSET_V6;
        self.tcp = linear.get(TCP_OFFSET_V6);
        store_addr(&mut self.tuple.source, ip.source);
        store_addr(&mut self.tuple.destination, ip.destination);
        (self.ttl, self.traffic_class) =
            (ip.hop_limit.into(), u32::from_be(ip.version_tc_flow) >> 20 & 0xff);
        self.is_translatable = 1;
        match u32::from(u16::from_be(ip.payload_len)) {
            0 => Some(ctx.length().wrapping_sub(self.tcp_offset)),
            payload => Some(payload),
        }
    }

    /// Swaps source and destination of the tuple. A sent segment then has the tuple of the answers.
    #[inline(always)]
    pub(super) fn swap_ends(&mut self) {
        let Tuple { source, destination, source_port, destination_port } = &mut self.tuple;
        let [from, to] = [addr_words(source), addr_words(destination)];
        store_addr(source, to);
        store_addr(destination, from);
        core::mem::swap(source_port, destination_port);
    }

    /// Whether all of these TCP flags are set.
    pub(super) fn has_flags(&self, flags: u8) -> bool {
        self.tcp.flags & flags == flags
    }

    /// Sequence number, in host byte order.
    pub(super) fn seq(&self) -> u32 {
        u32::from_be(self.tcp.seq)
    }

    /// Acknowledgement number, in host byte order.
    pub(super) fn ack(&self) -> u32 {
        u32::from_be(self.tcp.ack)
    }

    /// Sequence number after the segment. SYN and FIN count as one byte each.
    pub(super) fn seq_end(&self) -> u32 {
        let control_len = u32::from(self.has_flags(FIN)) + u32::from(self.has_flags(SYN));
        self.seq().wrapping_add(self.payload_len).wrapping_add(control_len)
    }
}

/// Returns the IP version of a frame. `None`: it is not IP.
#[inline(always)]
pub(super) fn family(ctx: &impl Frame) -> Option<Family> {
    match ctx.protocol() {
        ETH_P_IP => Some(Family::V4),
        ETH_P_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// Stores an IPv4 address in a tuple, as `::ffff:a.b.c.d`.
#[inline(always)]
pub(super) fn store_v4_mapped(addr: &mut [u8; 16], v4: u32) {
    store_addr(addr, [0, 0, 0xffff_u32.to_be(), v4]);
}

/// Stores an address in a tuple, as words in network byte order.
#[inline(always)]
pub(super) fn store_addr(addr: &mut [u8; 16], words: [u32; 4]) {
    // SAFETY: addresses of a tuple have the alignment of a word.
    unsafe { ptr::from_mut(addr).cast::<[u32; 4]>().write(words) };
}

/// Returns an address of a tuple as words in network byte order.
#[inline(always)]
pub(super) fn addr_words(addr: &[u8; 16]) -> [u32; 4] {
    // SAFETY: addresses of a tuple have the alignment of a word.
    unsafe { ptr::from_ref(addr).cast::<[u32; 4]>().read() }
}

/// Returns the IPv4 address of an address of a tuple.
#[inline(always)]
pub(super) fn from_v4_mapped(addr: &[u8; 16]) -> u32 {
    addr_words(addr)[3]
}

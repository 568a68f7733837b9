//! The headers of a TCP segment in a socket buffer, as the wire has them.

use core::ptr;

use snisplit_common::abi::packet::Tuple;

use super::frame::Frame;

/// `struct ethhdr`.
pub(super) const ETH_HLEN: u32 = 14;
/// `struct tcphdr` without options.
pub(super) const TCP_HLEN: u32 = 20;
/// Most bytes of TCP options.
pub(super) const MAX_OPTIONS_LEN: u32 = 40;

pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
/// Where a TCP header begins behind an IP header without options.
pub(super) const TCP_OFFSET_V4: u32 = ETH_HLEN + 20;
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

/// The bits of an IP header that ECN has; both are set if congestion was met (RFC 3168 §5).
pub(super) const INET_ECN_MASK: u32 = 3;

/// `struct iphdr` without options. Fields of more than a byte are in network order here and below.
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

/// Of which IP a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Family {
    V4 = 4,
    V6 = 6,
}

/// A TCP segment.
#[repr(C)]
pub(super) struct Segment {
    pub(super) tuple: Tuple,
    /// What is translated: as it stands in the packet, but for a challenge and for marks of congestion.
    pub(super) tcp: TcpHeader,
    pub(super) family: Family,
    /// Where its TCP header begins.
    pub(super) tcp_offset: u32,
    /// Hops that it may still take.
    pub(super) ttl: u32,
    /// The IP header's type of service, or traffic class.
    pub(super) traffic_class: u32,
    /// Bytes of options, 40 at most.
    pub(super) options_len: u32,
    /// Bytes of data.
    pub(super) payload_len: u32,
    /// Whether it can be translated; 0 is no.
    pub(super) is_translatable: u32,
}

impl Segment {
    /// `None` is something else. Nothing but TCP directly behind IP behind Ethernet is ours.
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

    /// How many bytes are behind the IP header.
    #[inline(always)]
    fn parse_ipv4(&mut self, ctx: &impl Frame) -> Option<u32> {
        // Nothing that is TCP is shorter.
        let linear = ctx.pull_linear(TCP_OFFSET_V4 + TCP_HLEN)?;
        let ip: Ipv4Header = linear.get(ETH_HLEN);
        // The first fragment too has ports to be known by.
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
            // More than 64 KiB (BIG TCP): then nothing is behind it.
            0 => ctx.length().wrapping_sub(ETH_HLEN),
            total_len => total_len,
        };
        Some(total_len.wrapping_sub(ip_header_len))
    }

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

    /// Makes it one that arrives, of one that leaves.
    #[inline(always)]
    pub(super) fn swap_ends(&mut self) {
        let Tuple { source, destination, source_port, destination_port } = &mut self.tuple;
        let [from, to] = [addr_words(source), addr_words(destination)];
        store_addr(source, to);
        store_addr(destination, from);
        core::mem::swap(source_port, destination_port);
    }

    pub(super) fn has_flags(&self, flags: u8) -> bool {
        self.tcp.flags & flags == flags
    }

    pub(super) fn seq(&self) -> u32 {
        u32::from_be(self.tcp.seq)
    }

    pub(super) fn ack(&self) -> u32 {
        u32::from_be(self.tcp.ack)
    }

    /// Behind the last number that it takes.
    pub(super) fn seq_end(&self) -> u32 {
        let control_len = u32::from(self.has_flags(FIN)) + u32::from(self.has_flags(SYN));
        self.seq().wrapping_add(self.payload_len).wrapping_add(control_len)
    }
}

/// The family of what is in the frame.
#[inline(always)]
pub(super) fn family(ctx: &impl Frame) -> Option<Family> {
    match ctx.protocol() {
        ETH_P_IP => Some(Family::V4),
        ETH_P_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// Writes an address of IPv4 as one of IPv6.
#[inline(always)]
pub(super) fn store_v4_mapped(addr: &mut [u8; 16], v4: u32) {
    store_addr(addr, [0, 0, 0xffff_u32.to_be(), v4]);
}

#[inline(always)]
pub(super) fn store_addr(addr: &mut [u8; 16], words: [u32; 4]) {
    // SAFETY: addresses of a tuple are aligned for that.
    unsafe { ptr::from_mut(addr).cast::<[u32; 4]>().write(words) };
}

/// The words of an address in a tuple, as they stand.
#[inline(always)]
pub(super) fn addr_words(addr: &[u8; 16]) -> [u32; 4] {
    // SAFETY: addresses of a tuple are aligned for that.
    unsafe { ptr::from_ref(addr).cast::<[u32; 4]>().read() }
}

/// The word of an address that matters of IPv4.
#[inline(always)]
pub(super) fn from_v4_mapped(addr: &[u8; 16]) -> u32 {
    addr_words(addr)[3]
}

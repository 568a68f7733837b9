//! The headers of a TCP segment in a socket buffer, as the wire has them.

use core::ptr;

use snisplit_common::abi::packet::Tuple;

use crate::frame::Frame;

/// `struct ethhdr`.
pub(crate) const ETHERNET: u32 = 14;
/// `struct tcphdr` without options.
pub(crate) const TCP: u32 = 20;
/// Most bytes of TCP options.
pub(crate) const OPTIONS: u32 = 40;

pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
/// Where a TCP header begins behind an IP header without options.
pub(crate) const TCP4: u32 = ETHERNET + 20;
pub(crate) const TCP6: u32 = ETHERNET + 40;
pub(crate) const IPPROTO_TCP: u8 = 6;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// The bits of an IP header that ECN has; both are set if congestion was met (RFC 3168 §5).
pub(crate) const ECN: u32 = 3;

/// `struct iphdr` without options. Fields of more than a byte are in network order here and below.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ip4 {
    pub(crate) version_length: u8,
    pub(crate) service: u8,
    pub(crate) total: u16,
    pub(crate) id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) check: u16,
    pub(crate) source: u32,
    pub(crate) destination: u32,
}

/// `struct ipv6hdr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ip6 {
    pub(crate) flow: u32,
    pub(crate) payload: u16,
    pub(crate) next: u8,
    pub(crate) hops: u8,
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
}

/// `struct tcphdr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) length: u8,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) check: u16,
    pub(crate) urgent: u16,
}

/// Of which IP a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Family {
    V4 = 4,
    V6 = 6,
}

/// A TCP segment.
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    /// What is translated: as it stands in the packet, but for a challenge and for marks of congestion.
    pub(crate) tcp: Tcp,
    pub(crate) family: Family,
    /// Where its TCP header begins.
    pub(crate) at: u32,
    /// Hops that it may still take.
    pub(crate) ttl: u32,
    /// The IP header's type of service, or traffic class.
    pub(crate) service: u32,
    /// Bytes of options, 40 at most.
    pub(crate) options: u32,
    /// Bytes of data.
    pub(crate) payload: u32,
    /// Whether it can be translated; 0 is no.
    pub(crate) is_whole: u32,
}

impl Segment {
    /// `None` is something else. Nothing but TCP directly behind IP behind Ethernet is ours.
    #[inline(always)]
    pub(crate) fn read(&mut self, ctx: &impl Frame) -> Option<()> {
        let family = family(ctx)?;
        let bytes = match family {
            Family::V4 => self.read_ip4(ctx)?,
            Family::V6 => self.read_ip6(ctx)?,
        };
        self.family = family;
        self.tuple.source_port = u16::from_be(self.tcp.source);
        self.tuple.destination_port = u16::from_be(self.tcp.destination);
        let header = u32::from(self.tcp.length >> 4) * 4;
        if header < TCP || bytes < header {
            self.is_whole = 0;
            return Some(());
        }
        (self.options, self.payload) = (header - TCP, bytes - header);
        Some(())
    }

    /// How many bytes are behind the IP header.
    #[inline(always)]
    fn read_ip4(&mut self, ctx: &impl Frame) -> Option<u32> {
        // Nothing that is TCP is shorter.
        let front = ctx.reach(TCP4 + TCP)?;
        let ip: Ip4 = front.get(ETHERNET);
        // The first fragment too has ports to be known by.
        let fragment = u16::from_be(ip.fragment) & 0x3fff;
        if ip.protocol != IPPROTO_TCP || fragment & 0x1fff != 0 {
            return None;
        }
        let header = u32::from(ip.version_length & 0xf) * 4;
        self.at = ETHERNET + header;
        self.tcp = if self.at == TCP4 { front.get(TCP4) } else { ctx.load(self.at)? };
        map(&mut self.tuple.source, ip.source);
        map(&mut self.tuple.destination, ip.destination);
        (self.ttl, self.service) = (ip.ttl.into(), ip.service.into());
        self.is_whole = u32::from(fragment == 0 && header == 20);
        let total = match u32::from(u16::from_be(ip.total)) {
            // More than 64 KiB (BIG TCP): then nothing is behind it.
            0 => ctx.length().wrapping_sub(ETHERNET),
            total => total,
        };
        Some(total.wrapping_sub(header))
    }

    #[inline(always)]
    fn read_ip6(&mut self, ctx: &impl Frame) -> Option<u32> {
        let front = ctx.reach(TCP6 + TCP)?;
        let ip: Ip6 = front.get(ETHERNET);
        if ip.next != IPPROTO_TCP {
            return None;
        }
        self.at = TCP6;
        self.tcp = front.get(TCP6);
        put(&mut self.tuple.source, ip.source);
        put(&mut self.tuple.destination, ip.destination);
        (self.ttl, self.service) = (ip.hops.into(), u32::from_be(ip.flow) >> 20 & 0xff);
        self.is_whole = 1;
        match u32::from(u16::from_be(ip.payload)) {
            0 => Some(ctx.length().wrapping_sub(self.at)),
            payload => Some(payload),
        }
    }

    /// Makes it one that arrives, of one that leaves.
    #[inline(always)]
    pub(crate) fn reverse(&mut self) {
        let Tuple { source, destination, source_port, destination_port } = &mut self.tuple;
        let [from, to] = [words(source), words(destination)];
        put(source, to);
        put(destination, from);
        core::mem::swap(source_port, destination_port);
    }

    pub(crate) fn has(&self, flags: u8) -> bool {
        self.tcp.flags & flags == flags
    }

    pub(crate) fn seq(&self) -> u32 {
        u32::from_be(self.tcp.seq)
    }

    pub(crate) fn ack(&self) -> u32 {
        u32::from_be(self.tcp.ack)
    }

    /// Behind the last number that it takes.
    pub(crate) fn end(&self) -> u32 {
        let ends = u32::from(self.has(FIN)) + u32::from(self.has(SYN));
        self.seq().wrapping_add(self.payload).wrapping_add(ends)
    }
}

/// The family of what is in the frame.
#[inline(always)]
pub(crate) fn family(ctx: &impl Frame) -> Option<Family> {
    match ctx.protocol() {
        ETH_P_IP => Some(Family::V4),
        ETH_P_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// Writes an address of IPv4 as one of IPv6.
#[inline(always)]
pub(crate) fn map(address: &mut [u8; 16], v4: u32) {
    put(address, [0, 0, 0xffff_u32.to_be(), v4]);
}

#[inline(always)]
pub(crate) fn put(address: &mut [u8; 16], words: [u32; 4]) {
    // SAFETY: addresses of a tuple are aligned for that.
    unsafe { ptr::from_mut(address).cast::<[u32; 4]>().write(words) };
}

/// The words of an address in a tuple, as they stand.
#[inline(always)]
pub(crate) fn words(address: &[u8; 16]) -> [u32; 4] {
    // SAFETY: addresses of a tuple are aligned for that.
    unsafe { ptr::from_ref(address).cast::<[u32; 4]>().read() }
}

/// The word of an address that matters of IPv4.
#[inline(always)]
pub(crate) fn unmapped(address: &[u8; 16]) -> u32 {
    words(address)[3]
}

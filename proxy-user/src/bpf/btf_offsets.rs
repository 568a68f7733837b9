//! Offsets of fields in structures of the running kernel, from its type information (BTF).

use std::fs;

use btfparse::{Error, ErrorKind, Offset, Readable, Result as BtfResult, TypeInformation};

use super::error::BpfError;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Offsets that the sockmap program needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SockmapOffsets {
    /// Offset of TCP's sequence number in an `sk_buff`: in its control block (`struct tcp_skb_cb`,
    /// include/net/tcp.h).
    pub(super) skb_seq: u32,
    /// Offset in a `tcp_sock`.
    pub(super) write_seq: u32,
    /// Offset in a `tcp_sock`.
    pub(super) copied_seq: u32,
}

/// Offsets in a `tcp_sock` that the packet programs need, in bytes, with the name of the global for each.
pub(super) type PacketOffsets = [(&'static str, u32); 10];

impl SockmapOffsets {
    /// Reads the offsets.
    ///
    /// # Errors
    /// Fails if the kernel has no BTF, or none of these fields.
    pub(super) fn from_running_kernel() -> Result<Self, BpfError> {
        let types = KernelTypes::from_running_kernel()?;
        Ok(Self {
            skb_seq: types.offset("sk_buff", "cb")? + types.offset("tcp_skb_cb", "seq")?,
            write_seq: types.offset("tcp_sock", "write_seq")?,
            copied_seq: types.offset("tcp_sock", "copied_seq")?,
        })
    }
}

/// Reads the offsets of the packet programs.
///
/// # Errors
/// Fails if the kernel has no BTF, or none of these fields.
pub(super) fn packet_offsets() -> Result<PacketOffsets, BpfError> {
    let types = KernelTypes::from_running_kernel()?;
    let tcp = |member| types.offset("tcp_sock", member);
    let rx_opt = tcp("rx_opt")?;
    Ok([
        // A `tcp_sock` starts with a `sock`, and a `sock` with a `sock_common`.
        ("SK_STATE_OFFSET", types.offset("sock_common", "skc_state")?),
        ("RCV_NXT_OFFSET", tcp("rcv_nxt")?),
        ("COPIED_SEQ_OFFSET", tcp("copied_seq")?),
        ("SND_UNA_OFFSET", tcp("snd_una")?),
        ("WRITE_SEQ_OFFSET", tcp("write_seq")?),
        ("BYTES_ACKED_OFFSET", tcp("bytes_acked")?),
        ("OUT_OF_ORDER_OFFSET", tcp("out_of_order_queue")?),
        ("TS_RECENT_OFFSET", rx_opt + types.offset("tcp_options_received", "ts_recent")?),
        ("ECN_FLAGS_OFFSET", tcp("ecn_flags")?),
        ("TS_OFFSET_OFFSET", tcp("tsoffset")?),
    ])
}

struct KernelTypes(TypeInformation);

impl KernelTypes {
    fn from_running_kernel() -> Result<Self, BpfError> {
        let image = fs::read(VMLINUX_BTF)
            .map_err(|error| BpfError::Btf(format!("{VMLINUX_BTF}: {error}")))?;
        let types = TypeInformation::new(&BtfImage(image))
            .map_err(|error| BpfError::Btf(format!("{VMLINUX_BTF}: {error:?}")))?;
        Ok(Self(types))
    }

    fn offset(&self, structure: &str, member: &str) -> Result<u32, BpfError> {
        let unknown = || BpfError::Btf(format!("no {structure}.{member}"));
        let id = self.0.id_of(structure).ok_or_else(unknown)?;
        match self.0.offset_of(id, member) {
            Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
            Ok(_) | Err(_) => Err(unknown()),
        }
    }
}

/// Content of a BTF file.
struct BtfImage(Vec<u8>);

impl Readable for BtfImage {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> BtfResult<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.0.get(from..from.saturating_add(buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::IOError, "the file is truncated")),
        }
    }
}

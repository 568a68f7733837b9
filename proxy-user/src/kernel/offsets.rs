//! Where this kernel keeps TCP's numbers, from its own type information (BTF).

use std::fs;

use btfparse::{Error, ErrorKind, Offset, Readable, Result as BtfResult, TypeInformation};

use super::KernelError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Bytes from the beginning of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    /// In an `sk_buff`: TCP's sequence number, the first member of its control block
    /// (`struct tcp_skb_cb`, include/net/tcp.h).
    pub(super) skb_seq: u32,
    /// In a `tcp_sock`.
    pub(super) write_seq: u32,
    /// In a `tcp_sock`.
    pub(super) copied_seq: u32,
}

/// What the packet engine looks at of a `tcp_sock`, by the names of its program's globals.
pub(super) type SocketOffsets = [(&'static str, u32); 10];

impl Offsets {
    pub(super) fn of_this_kernel() -> Result<Self, KernelError> {
        let types = Types::of_this_kernel()?;
        Ok(Self {
            skb_seq: types.offset("sk_buff", "cb")? + types.offset("tcp_skb_cb", "seq")?,
            write_seq: types.offset("tcp_sock", "write_seq")?,
            copied_seq: types.offset("tcp_sock", "copied_seq")?,
        })
    }
}

pub(super) fn of_sockets() -> Result<SocketOffsets, KernelError> {
    let types = Types::of_this_kernel()?;
    let tcp = |member| types.offset("tcp_sock", member);
    let options = tcp("rx_opt")?;
    Ok([
        // A `tcp_sock` begins with its `sock`, and that with its `sock_common`.
        ("SK_STATE_OFFSET", types.offset("sock_common", "skc_state")?),
        ("RCV_NXT_OFFSET", tcp("rcv_nxt")?),
        ("COPIED_SEQ_OFFSET", tcp("copied_seq")?),
        ("SND_UNA_OFFSET", tcp("snd_una")?),
        ("WRITE_SEQ_OFFSET", tcp("write_seq")?),
        ("BYTES_ACKED_OFFSET", tcp("bytes_acked")?),
        ("OUT_OF_ORDER_OFFSET", tcp("out_of_order_queue")?),
        ("TS_RECENT_OFFSET", options + types.offset("tcp_options_received", "ts_recent")?),
        ("ECN_FLAGS_OFFSET", tcp("ecn_flags")?),
        ("TS_OFFSET_OFFSET", tcp("tsoffset")?),
    ])
}

struct Types(TypeInformation);

impl Types {
    fn of_this_kernel() -> Result<Self, KernelError> {
        let image = fs::read(VMLINUX)
            .map_err(|error| KernelError::Offsets(format!("{VMLINUX}: {error}")))?;
        let types = TypeInformation::new(&Image(image))
            .map_err(|error| KernelError::Offsets(format!("{VMLINUX}: {error:?}")))?;
        Ok(Self(types))
    }

    fn offset(&self, structure: &str, member: &str) -> Result<u32, KernelError> {
        let unknown = || KernelError::Offsets(format!("no {structure}.{member}"));
        let id = self.0.id_of(structure).ok_or_else(unknown)?;
        match self.0.offset_of(id, member) {
            Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
            Ok(_) | Err(_) => Err(unknown()),
        }
    }
}

/// A file that is in memory.
struct Image(Vec<u8>);

impl Readable for Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> BtfResult<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.0.get(from..from.saturating_add(buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::IOError, "the file is cut short")),
        }
    }
}

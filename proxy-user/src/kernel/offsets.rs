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

impl Offsets {
    pub(super) fn of_this_kernel() -> Result<Self, KernelError> {
        let image = fs::read(VMLINUX)
            .map_err(|error| KernelError::Offsets(format!("{VMLINUX}: {error}")))?;
        let types = TypeInformation::new(&Image(image))
            .map_err(|error| KernelError::Offsets(format!("{VMLINUX}: {error:?}")))?;
        let offset = |structure: &str, member: &str| {
            let unknown = || KernelError::Offsets(format!("no {structure}.{member}"));
            let id = types.id_of(structure).ok_or_else(unknown)?;
            match types.offset_of(id, member) {
                Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
                Ok(_) | Err(_) => Err(unknown()),
            }
        };
        Ok(Self {
            skb_seq: offset("sk_buff", "cb")? + offset("tcp_skb_cb", "seq")?,
            write_seq: offset("tcp_sock", "write_seq")?,
            copied_seq: offset("tcp_sock", "copied_seq")?,
        })
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

//! The first request of a connection, INIT, and its answer (linux/fuse.h), in the bytes of the
//! machine.

use fuser::InitFlags;

#[cfg(test)]
mod tests;

/// Room for a request: the kernel refuses a read with less than 8 KiB.
pub const ROOM: usize = 64 << 10;

/// The opcode of INIT.
const INIT: u32 = 26;
/// struct fuse_in_header.
const HEADER: usize = 40;
/// struct fuse_out_header with struct fuse_init_out.
const ANSWER: usize = 16 + 64;
/// The bit of `flags` that says that there is a `flags2`.
const EXTENDED: u32 = 1 << 30;

/// The kernel's offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Major version of the protocol.
    pub major: u32,
    /// Minor version of the protocol.
    pub minor: u32,
    /// The most that it reads ahead unless it is told otherwise, in bytes.
    pub max_readahead: u32,
    flags: InitFlags,
}

impl Offer {
    /// Whether it offers a capability.
    pub fn has(&self, flag: InitFlags) -> bool {
        self.flags.contains(flag)
    }

    /// The capabilities by the names of linux/fuse.h, in small letters and without `FUSE_`,
    /// `FUSE_DO_` and `FUSE_HAS_`.
    pub fn names(&self) -> Vec<String> {
        let plain = |name: &str| {
            let name = name.strip_prefix("FUSE_").unwrap_or(name);
            let name = name.strip_prefix("DO_").or(name.strip_prefix("HAS_")).unwrap_or(name);
            name.to_lowercase()
        };
        let flags = self.flags.difference(InitFlags::FUSE_INIT_EXT);
        flags.iter_names().map(|(name, _)| plain(name)).collect()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The offer in a request, and the number of the request; `None` when it is not INIT.
pub fn parse(request: &[u8]) -> Option<(Offer, u64)> {
    if word(request, 4)? != INIT {
        return None;
    }
    let unique = u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?);
    let body = request.get(HEADER..)?;
    let low = word(body, 12)?;
    // A kernel that knows no more than 32 flags sends none.
    let high = if low & EXTENDED == 0 { 0 } else { word(body, 16)? };
    let flags = InitFlags::from_bits_retain(u64::from(high) << 32 | u64::from(low));
    let (major, minor) = (word(body, 0)?, word(body, 4)?);
    Some((Offer { major, minor, max_readahead: word(body, 8)?, flags }, unique))
}

/// The answer: passthrough with this stack depth where it is offered, and nothing else.
pub fn answer(offer: &Offer, unique: u64, depth: u32) -> Vec<u8> {
    let wanted = offer.flags & (InitFlags::FUSE_INIT_EXT | InitFlags::FUSE_PASSTHROUGH);
    let bits = wanted.bits();
    let mut bytes = Vec::with_capacity(ANSWER);
    let mut put = |word: u32| bytes.extend_from_slice(&word.to_ne_bytes());
    put(ANSWER as u32);
    put(0); // No error.
    let unique = unique.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = unique;
    put(u32::from_ne_bytes([a, b, c, d]));
    put(u32::from_ne_bytes([e, f, g, h]));
    put(offer.major);
    put(offer.minor);
    put(offer.max_readahead);
    put(bits as u32);
    put(0); // max_background and congestion_threshold: the kernel's own.
    put(128 << 10); // max_write
    put(1); // time_gran
    put(0); // max_pages and map_alignment: not agreed on.
    put((bits >> 32) as u32);
    put(depth);
    bytes.resize(ANSWER, 0);
    bytes
}

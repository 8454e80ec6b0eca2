//! Offsets in the listing of a merged directory.
//!
//! An offset has the layer whose directory comes next and the place in that one, by the cookie of
//! its own filesystem. So it means the same in every listing of the directory, whatever else is
//! made, removed or copied up: the kernel may keep a listing, and go on in it by asking again.

/// The division of an offset in two numbers, by the number of layers of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OffsetFormat {
    /// Bits of a layer's own cookie. Above them is the number of the layer's part.
    cookie_bits: u32,
}

impl OffsetFormat {
    /// That of a stack with so many lower layers: 58 bits for cookies with up to 29 of them, and
    /// fewer with more.
    pub(super) fn of(lowers: usize) -> OffsetFormat {
        let bits = (5..=MOST_PART_BITS).find(|bits| lowers <= most_lowers(*bits));
        OffsetFormat { cookie_bits: 63 - bits.unwrap_or(MOST_PART_BITS) }
    }

    /// Cookies below this are in an offset as they are, larger ones without their low bits.
    fn exact(self) -> u64 {
        1 << (self.cookie_bits - 1)
    }

    /// Number of bits that larger cookies lose. They are hashes of 63 bits (ext4): going on at the
    /// rest of one lists those again, and only those, that are before it with the same high bits.
    /// Among a million names there are such two in one of 300,000 directories, with 29 lower layers
    /// at most.
    fn lost_bits(self) -> u32 {
        63 - (self.cookie_bits - 1)
    }

    /// The offset of a place in a part.
    pub(super) fn encode(self, part: u64, short: u64) -> u64 {
        part << self.cookie_bits | short
    }

    /// The part of an offset, and what it has of the cookie: the start, when it is before all
    /// parts.
    pub(super) fn decode(self, offset: u64) -> (u64, u64) {
        match offset >> self.cookie_bits {
            0 => (0, 0),
            part => (part, offset & ((1 << self.cookie_bits) - 1)),
        }
    }
}

/// The most bits for the number of a part.
const MOST_PART_BITS: u32 = 8;

/// Number of lower layers that so many bits tell apart. The last number is not used, since the
/// largest offsets mean something else to those above.
const fn most_lowers(bits: u32) -> usize {
    (1 << bits) - 3
}

/// Offset behind `.`, the first entry.
pub(super) const AFTER_DOT: u64 = 1;

/// Offset behind `..`, the second entry.
pub(super) const AFTER_DOTS: u64 = 2;

/// Part of the upper directory. It comes first, so that entries which are copied up while the lower
/// parts are listed are not listed twice.
pub(super) const UPPER: u64 = 1;

/// The most lower layers of a mount.
pub(super) const MOST_LOWERS: usize = most_lowers(MOST_PART_BITS);

/// The part of a lower layer by its index in the stack, 1 for the topmost of them.
pub(super) fn lower(layer: usize) -> u64 {
    UPPER + layer as u64
}

/// The cookies of an open directory of a layer, as offsets have them.
#[derive(Debug)]
pub(super) struct Cookies {
    format: OffsetFormat,
    /// Cookies are hashes or small. Elsewhere large ones may be anything, and are kept here by
    /// number: those offsets are good in this open directory only.
    noted: Option<Vec<u64>>,
    /// The last one given out, and the cookie of the entry that comes next now.
    at: (u64, u64),
}

impl Cookies {
    /// For a directory whose offsets are good in every listing, or not.
    pub(super) fn new(format: OffsetFormat, keeps: bool) -> Cookies {
        Cookies { format, noted: (!keeps).then(Vec::new), at: (0, 0) }
    }

    pub(super) fn format(&self) -> OffsetFormat {
        self.format
    }

    /// The part of a cookie that goes into an offset.
    pub(super) fn encode_cookie(&mut self, cookie: u64) -> u64 {
        let exact = self.format.exact();
        match &mut self.noted {
            _ if cookie < exact => cookie,
            None => exact | (cookie >> self.format.lost_bits()) & (exact - 1),
            Some(noted) => {
                noted.push(cookie);
                exact | (noted.len() as u64 - 1)
            }
        }
    }

    /// The cookie to go on at; `None` for an offset of another open directory.
    pub(super) fn decode_cookie(&self, short: u64) -> Option<u64> {
        match &self.noted {
            _ if short == self.at.0 => Some(self.at.1),
            _ if short < self.format.exact() => Some(short),
            None => Some((short - self.format.exact()) << self.format.lost_bits()),
            Some(noted) => noted.get(usize::try_from(short - self.format.exact()).ok()?).copied(),
        }
    }

    /// Notes that the listing goes on at an offset.
    pub(super) fn begin(&mut self, short: u64, cookie: u64) {
        self.at = (short, cookie);
    }

    /// Notes that an entry was skipped; `cookie` is the one of the next entry.
    pub(super) fn pass(&mut self, cookie: u64) {
        self.at.1 = cookie;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stacks with few lower layers, and with many.
    fn formats() -> [OffsetFormat; 3] {
        [OffsetFormat::of(1), OffsetFormat::of(64), OffsetFormat::of(MOST_LOWERS)]
    }

    #[test]
    fn more_layers_leave_fewer_bits_to_cookies() {
        let bits = |lowers| OffsetFormat::of(lowers).cookie_bits;
        assert_eq!([bits(1), bits(29), bits(30), bits(61), bits(62)], [58, 58, 57, 57, 56]);
        assert_eq!([bits(125), bits(126), bits(MOST_LOWERS)], [56, 55, 55]);
    }

    #[test]
    fn small_cookies_are_kept_as_they_are() {
        for format in formats() {
            let mut cookies = Cookies::new(format, true);
            for cookie in [0, 1, 2, 1 << 31, i32::MAX as u64, format.exact() - 1] {
                let short = cookies.encode_cookie(cookie);
                assert_eq!(cookies.decode_cookie(short), Some(cookie));
                assert_eq!(format.decode(format.encode(lower(3), short)), (lower(3), short));
            }
        }
    }

    #[test]
    fn places_are_in_the_order_of_the_cookies_and_never_behind_them() {
        for format in formats() {
            let mut cookies = Cookies::new(format, true);
            let mut last = 0;
            for cookie in
                (0..63).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 2])
            {
                let short = cookies.encode_cookie(cookie);
                assert!(short >= last, "{cookie:x}");
                last = short;
                let back = cookies.decode_cookie(short).unwrap();
                let near = back <= cookie && cookie - back < 1 << format.lost_bits();
                assert!(near, "{cookie:x} became {back:x}");
            }
            let end = cookies.encode_cookie(i64::MAX as u64);
            assert!(end >= last && end < 1 << format.cookie_bits);
        }
    }

    #[test]
    fn a_listing_goes_on_at_the_very_cookie_where_it_has_come_to() {
        let mut cookies = Cookies::new(OffsetFormat::of(1), true);
        let cookie = 0x7654_3210_1234_5677;
        let short = cookies.encode_cookie(cookie);
        assert_ne!(cookies.decode_cookie(short), Some(cookie));
        cookies.begin(short, cookie);
        assert_eq!(cookies.decode_cookie(short), Some(cookie));
        cookies.pass(cookie + 5);
        assert_eq!(cookies.decode_cookie(short), Some(cookie + 5));
    }

    #[test]
    fn large_cookies_that_may_be_anything_are_noted() {
        for format in formats() {
            let mut cookies = Cookies::new(format, false);
            for cookie in [format.exact(), format.exact() + 1, u64::MAX, 5] {
                let short = cookies.encode_cookie(cookie);
                assert_eq!(cookies.decode_cookie(short), Some(cookie));
            }
            assert_eq!(cookies.decode_cookie(format.exact() + 100), None);
        }
    }

    #[test]
    fn no_place_is_among_the_largest_numbers() {
        for lowers in [29, 61, 125, MOST_LOWERS] {
            let format = OffsetFormat::of(lowers);
            let last = format.encode(lower(lowers), (1 << format.cookie_bits) - 1);
            assert!(last < (i64::MAX as u64) - (1 << (format.cookie_bits - 1)));
            assert!(format.encode(UPPER, 0) > AFTER_DOTS);
        }
    }
}

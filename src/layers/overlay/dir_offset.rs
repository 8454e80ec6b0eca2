//! Places in the listing of a merged directory.
//!
//! A place says which layer's directory comes next and where in that one, by the cookie of its own
//! filesystem. So it means the same in every listing of the directory, whatever else is made,
//! removed or copied up: the kernel may keep a listing, and go on in it by asking again.

/// Bits of a layer's own cookie in a place. Above them is the number of the layer's part.
const COOKIE_BITS: u32 = 58;

/// Cookies below this are in a place as they are, larger ones without their low bits.
const EXACT: u64 = 1 << (COOKIE_BITS - 1);

/// How many bits larger cookies lose. They are hashes of 63 bits (ext4): going on at what is left
/// of one lists those again, and only those, that are before it with the same high bits. Among a
/// million names there are such two in one of 300,000 directories.
const LOST_BITS: u32 = 63 - (COOKIE_BITS - 1);

/// After `.`, which is the first entry.
pub(super) const AFTER_DOT: u64 = 1;

/// After `..`.
pub(super) const AFTER_DOTS: u64 = 2;

/// The part of the upper directory. It comes first: what is made or copied up by somebody who
/// lists those below is not met again.
pub(super) const UPPER: u64 = 1;

/// How many lower layers there may be: the last number is not used, since the largest places mean
/// something else to those above.
pub(super) const MOST_LOWERS: usize = (1 << (63 - COOKIE_BITS)) - 3;

/// The part of a lower layer by its index in the stack, 1 for the topmost of them.
pub(super) fn lower(layer: usize) -> u64 {
    UPPER + layer as u64
}

/// The place in a part.
pub(super) fn encode(part: u64, short: u64) -> u64 {
    part << COOKIE_BITS | short
}

/// The part of a place, and what it has of the cookie: the start, when it is before all parts.
pub(super) fn decode(place: u64) -> (u64, u64) {
    match place >> COOKIE_BITS {
        0 => (0, 0),
        part => (part, place & ((1 << COOKIE_BITS) - 1)),
    }
}

/// How the cookies of an open directory of a layer go into places.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    /// Cookies are hashes or small. Elsewhere large ones may be anything, and are kept here by
    /// number: those places are good in this open directory only.
    noted: Option<Vec<u64>>,
    /// What was given out last, and the cookie of what comes next now.
    at: (u64, u64),
}

impl Cookies {
    /// For a directory whose places are good in every listing, or not.
    pub(super) fn new(keeps: bool) -> Cookies {
        Cookies { noted: (!keeps).then(Vec::new), at: (0, 0) }
    }

    /// What goes into a place.
    pub(super) fn encode_cookie(&mut self, cookie: u64) -> u64 {
        match &mut self.noted {
            _ if cookie < EXACT => cookie,
            None => EXACT | (cookie >> LOST_BITS) & (EXACT - 1),
            Some(noted) => {
                noted.push(cookie);
                EXACT | (noted.len() as u64 - 1)
            }
        }
    }

    /// Where to go on; `None` for a place of another open directory.
    pub(super) fn decode_cookie(&self, short: u64) -> Option<u64> {
        match &self.noted {
            _ if short == self.at.0 => Some(self.at.1),
            _ if short < EXACT => Some(short),
            None => Some((short - EXACT) << LOST_BITS),
            Some(noted) => noted.get(usize::try_from(short - EXACT).ok()?).copied(),
        }
    }

    /// Notes that the listing goes on at a place.
    pub(super) fn begin(&mut self, short: u64, cookie: u64) {
        self.at = (short, cookie);
    }

    /// Notes that an entry was passed over.
    pub(super) fn pass(&mut self, cookie: u64) {
        self.at.1 = cookie;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cookies_are_kept_as_they_are() {
        let mut cookies = Cookies::new(true);
        for cookie in [0, 1, 2, 1 << 31, i32::MAX as u64, EXACT - 1] {
            let short = cookies.encode_cookie(cookie);
            assert_eq!(cookies.decode_cookie(short), Some(cookie));
            assert_eq!(decode(encode(lower(3), short)), (lower(3), short));
        }
    }

    #[test]
    fn places_are_in_the_order_of_the_cookies_and_never_behind_them() {
        let mut cookies = Cookies::new(true);
        let mut last = 0;
        for cookie in
            (0..63).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 2])
        {
            let short = cookies.encode_cookie(cookie);
            assert!(short >= last, "{cookie:x}");
            last = short;
            let back = cookies.decode_cookie(short).unwrap();
            assert!(back <= cookie && cookie - back < 1 << LOST_BITS, "{cookie:x} became {back:x}");
        }
        let end = cookies.encode_cookie(i64::MAX as u64);
        assert!(end >= last && end < 1 << COOKIE_BITS);
    }

    #[test]
    fn a_listing_goes_on_at_the_very_cookie_where_it_has_come_to() {
        let mut cookies = Cookies::new(true);
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
        let mut cookies = Cookies::new(false);
        for cookie in [EXACT, EXACT + 1, u64::MAX, 5] {
            let short = cookies.encode_cookie(cookie);
            assert_eq!(cookies.decode_cookie(short), Some(cookie));
        }
        assert_eq!(cookies.decode_cookie(EXACT + 100), None);
    }

    #[test]
    fn no_place_is_among_the_largest_numbers() {
        let last = encode(lower(MOST_LOWERS), (1 << COOKIE_BITS) - 1);
        assert!(last < (i64::MAX as u64) - (1 << (COOKIE_BITS - 1)));
        assert!(encode(UPPER, 0) > AFTER_DOTS);
    }
}

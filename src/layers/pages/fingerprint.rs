//! Fingerprints of base files, by which a later change is detected.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use crate::sys;

/// Seconds since 1970, negative before, and nanoseconds.
pub type Moment = (i64, u32);

/// Filesystems by their magic number (statfs(2)).
const EXT: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;
const TMPFS: u64 = 0x0102_1994;
const OVERLAYFS: u64 = 0x794c_7630;

/// First version of Linux with multigrain timestamps.
const FINE_TIMES: (u32, u32) = (6, 13);

/// Longest resolution of the clock for coarse timestamps (CONFIG_HZ=100).
const TICK: Duration = Duration::from_millis(10);

/// Coarsest unit of timestamps without nanoseconds: ext with small inodes has 1 s, FAT 2 s.
const COARSE_UNIT: Duration = Duration::from_secs(2);

const BIRTH_KNOWN: u32 = 1 << 0;
const RACY: u32 = 1 << 1;

/// Identity and version of a base file at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// Size in bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Moment,
    /// Last change of the inode.
    pub ctime: Moment,
    /// Birth time; `None` where the filesystem has none, or changes it at a copy-up of its own
    /// (overlayfs).
    pub birth: Option<Moment>,
    /// Inode number. The device number is left out: it changes with a reboot.
    pub ino: u64,
    /// The last change is so recent that a later one may get the same ctime.
    pub racy: bool,
}

/// Result of the comparison of an earlier fingerprint with a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The content of the file is unchanged.
    Same,
    /// The file was written, replaced or resized.
    Changed,
    /// The fingerprints do not decide it.
    Unknown(Doubt),
}

/// Reason why fingerprints do not decide whether a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// All fields are equal, and the earlier fingerprint is racy.
    Racy,
    /// Only the ctime differs: attributes, names or links changed, or the file was written and its
    /// mtime set back.
    OnlyCtime,
}

impl Fingerprint {
    /// Length of the encoding of [`Fingerprint::encode`], in bytes.
    pub const LEN: usize = 56;

    /// Fingerprint of an open file at this moment; an O_PATH descriptor is enough.
    ///
    /// # Errors
    /// Errors of statx(2) and fstatfs(2).
    pub fn of(file: impl AsFd) -> Result<Fingerprint, Errno> {
        // The clock is read before the file: a change in between is within a tick of `now`.
        let now = SystemTime::now();
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, mask)?;
        let filesystem = rustix::fs::fstatfs(&file)?.f_type as u64 & 0xffff_ffff;
        let moment = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && filesystem != OVERLAYFS;
        let ctime = moment(stat.stx_ctime);
        Ok(Fingerprint {
            size: stat.stx_size,
            mtime: moment(stat.stx_mtime),
            ctime,
            birth: has_birth.then(|| moment(stat.stx_btime)).filter(|birth| *birth != (0, 0)),
            ino: stat.stx_ino,
            racy: is_within_tick(ctime, now, has_fine_times(filesystem)),
        })
    }

    /// Compares this fingerprint with a later one.
    pub fn compare(&self, later: &Fingerprint) -> Comparison {
        let other_birth = match (self.birth, later.birth) {
            (Some(then), Some(now)) => then != now,
            _ => false,
        };
        let differ = (self.size, self.mtime, self.ino) != (later.size, later.mtime, later.ino);
        if differ || other_birth {
            Comparison::Changed
        } else if self.ctime != later.ctime {
            Comparison::Unknown(Doubt::OnlyCtime)
        } else if self.racy {
            Comparison::Unknown(Doubt::Racy)
        } else {
            Comparison::Same
        }
    }

    /// Encodes the fingerprint as page maps store it, little endian: size, inode number, seconds of
    /// mtime, ctime and birth (8 bytes each), nanoseconds of the three times and flags (4 bytes
    /// each). Flags: 1 birth known, 2 racy.
    pub fn encode(&self) -> [u8; Fingerprint::LEN] {
        let birth = self.birth.unwrap_or_default();
        let known = if self.birth.is_some() { BIRTH_KNOWN } else { 0 };
        let flags = known | if self.racy { RACY } else { 0 };
        let long = [self.size, self.ino, self.mtime.0 as u64, self.ctime.0 as u64, birth.0 as u64];
        let short = [self.mtime.1, self.ctime.1, birth.1, flags];
        let mut bytes = [0; Fingerprint::LEN];
        let (first, second) = bytes.split_at_mut(40);
        for (place, value) in first.as_chunks_mut().0.iter_mut().zip(long) {
            *place = value.to_le_bytes();
        }
        for (place, value) in second.as_chunks_mut().0.iter_mut().zip(short) {
            *place = value.to_le_bytes();
        }
        bytes
    }

    /// Whether a later fingerprint belongs to the same file, changed or not: the inode numbers are
    /// equal, and so are the birth times where both are known, since inode numbers are reused.
    pub fn is_of_file(&self, later: &Fingerprint) -> bool {
        let other_birth =
            matches!((self.birth, later.birth), (Some(then), Some(now)) if then != now);
        self.ino == later.ino && !other_birth
    }

    /// Encodes the fingerprint as an xattr stores it, short enough for an inode of ext4: the flags
    /// of [`Fingerprint::encode`], size, inode number, and seconds and nanoseconds of mtime, ctime
    /// and, if known, birth. Each number is in LEB128, seconds with the sign in the lowest bit.
    pub fn pack(&self) -> Vec<u8> {
        let known = if self.birth.is_some() { BIRTH_KNOWN } else { 0 };
        let flags = known | if self.racy { RACY } else { 0 };
        let mut bytes = Vec::with_capacity(40);
        let mut push = |mut number: u64| {
            while number >= 0x80 {
                bytes.push(number as u8 | 0x80);
                number >>= 7;
            }
            bytes.push(number as u8);
        };
        [u64::from(flags), self.size, self.ino].into_iter().for_each(&mut push);
        for (seconds, nanoseconds) in
            [Some(self.mtime), Some(self.ctime), self.birth].into_iter().flatten()
        {
            push((seconds << 1 ^ seconds >> 63) as u64);
            push(u64::from(nanoseconds));
        }
        bytes
    }

    /// Decodes the encoding of [`Fingerprint::pack`]; `None` for anything else.
    pub fn unpack(bytes: &[u8]) -> Option<Fingerprint> {
        let mut rest = bytes.iter();
        let mut next = || {
            let mut number = 0_u64;
            for shift in (0..64).step_by(7) {
                let byte = *rest.next()?;
                number |= u64::from(byte & 0x7f).checked_shl(shift)?;
                if byte & 0x80 == 0 {
                    return Some(number);
                }
            }
            None
        };
        let (flags, size, ino) = (next()?, next()?, next()?);
        let mut moment = || {
            let (seconds, nanoseconds) = (next()?, next()?);
            let seconds = (seconds >> 1) as i64 ^ -((seconds & 1) as i64);
            Some((seconds, u32::try_from(nanoseconds).ok().filter(|part| *part < 1_000_000_000)?))
        };
        let (mtime, ctime) = (moment()?, moment()?);
        let birth = if flags & u64::from(BIRTH_KNOWN) != 0 { Some(moment()?) } else { None };
        let racy = flags & u64::from(RACY) != 0;
        let found = Fingerprint { size, mtime, ctime, birth, ino, racy };
        (i64::try_from(size).is_ok() && found.pack() == bytes).then_some(found)
    }

    /// Decodes the encoding of [`Fingerprint::encode`]; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Fingerprint> {
        let bytes: &[u8; Fingerprint::LEN] = bytes.try_into().ok()?;
        let (first, second) = bytes.split_at(40);
        let [size, ino, mtime, ctime, birth]: [u64; 5] = numbers(first, u64::from_le_bytes)?;
        let [mtime_ns, ctime_ns, birth_ns, flags]: [u32; 4] = numbers(second, u32::from_le_bytes)?;
        let found = Fingerprint {
            size,
            mtime: (mtime as i64, mtime_ns),
            ctime: (ctime as i64, ctime_ns),
            birth: (flags & BIRTH_KNOWN != 0).then_some((birth as i64, birth_ns)),
            ino,
            racy: flags & RACY != 0,
        };
        let times = [mtime_ns, ctime_ns, birth_ns].iter().all(|part| *part < 1_000_000_000);
        let sound = times && i64::try_from(size).is_ok() && found.encode() == *bytes;
        sound.then_some(found)
    }
}

fn numbers<T, const COUNT: usize, const SIZE: usize>(
    bytes: &[u8],
    number: impl Fn([u8; SIZE]) -> T,
) -> Option<[T; COUNT]> {
    let all: Vec<T> = bytes.as_chunks().0.iter().map(|part| number(*part)).collect();
    all.try_into().ok()
}

/// Whether a change at `now` may get the same ctime. With multigrain timestamps (`fine`) the next
/// change gets another one, since statx(2) has read this one.
fn is_within_tick(ctime: Moment, now: SystemTime, fine: bool) -> bool {
    let tick = match ctime.1 {
        0 => COARSE_UNIT,
        _ if fine => return false,
        _ => TICK,
    };
    let Ok(seconds) = u64::try_from(ctime.0) else { return false }; // Before 1970.
    let free = UNIX_EPOCH.checked_add(Duration::new(seconds, ctime.1) + tick);
    free.is_none_or(|free| now <= free)
}

/// Whether a filesystem has multigrain timestamps: a change after the last timestamp was read gets
/// a fine-grained one.
fn has_fine_times(filesystem: u64) -> bool {
    sys::kernel_version() >= FINE_TIMES && [EXT, XFS, BTRFS, TMPFS].contains(&filesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Fingerprint {
        Fingerprint {
            size: 4097,
            mtime: (-5, 999_999_999),
            ctime: (1 << 40, 7),
            birth: Some((3, 4)),
            ino: u64::MAX - 1,
            racy: false,
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_it_was_written_and_nothing_else_is_read() {
        for print in [some(), Fingerprint { birth: None, racy: true, ..some() }] {
            let bytes = print.encode();
            assert_eq!(Fingerprint::decode(&bytes), Some(print));
            assert_eq!(Fingerprint::decode(&bytes[1..]), None);
            let mut more = bytes;
            more[Fingerprint::LEN - 1] = 1;
            assert_eq!(Fingerprint::decode(&more), None, "an unknown flag");
            let mut late = bytes;
            late[43] = 0xff;
            assert_eq!(Fingerprint::decode(&late), None, "more nanoseconds than a second has");
        }
    }

    #[test]
    fn a_packed_fingerprint_is_read_as_it_was_written_and_nothing_else_is_read() {
        let now = Fingerprint {
            size: 123_456,
            mtime: (1_790_000_000, 123_456_789),
            ctime: (1_790_000_001, 999_999_999),
            birth: Some((1_780_000_000, 1)),
            ino: 12_345_678,
            racy: false,
        };
        assert!(now.pack().len() <= 40, "room in an inode of 256 bytes");
        let early = Fingerprint { mtime: (i64::MIN, 0), ctime: (-1, 5), ..now };
        for print in [some(), now, early, Fingerprint { birth: None, racy: true, ..some() }] {
            let bytes = print.pack();
            assert_eq!(Fingerprint::unpack(&bytes), Some(print));
            assert_eq!(Fingerprint::unpack(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Fingerprint::unpack(&[&bytes[..], &[0]].concat()), None);
            let mut flags = bytes;
            flags[0] |= 4;
            assert_eq!(Fingerprint::unpack(&flags), None, "an unknown flag");
        }
        assert_eq!(Fingerprint::unpack(&[]), None);
        assert_eq!(Fingerprint::unpack(&[0xff; 64]), None);
        let mut long = now.pack();
        long[0] |= 0x80;
        long.insert(1, 0);
        assert_eq!(Fingerprint::unpack(&long), None, "more bytes than it takes");
    }

    #[test]
    fn a_file_is_known_again_by_its_number_and_birth() {
        let print = some();
        assert!(print.is_of_file(&Fingerprint { size: 1, mtime: (9, 9), ctime: (8, 8), ..print }));
        assert!(print.is_of_file(&Fingerprint { birth: None, ..print }));
        assert!(!print.is_of_file(&Fingerprint { birth: Some((3, 5)), ..print }));
        assert!(!print.is_of_file(&Fingerprint { ino: 5, ..print }));
    }

    #[test]
    fn a_comparison_tells_what_the_times_tell_and_no_more() {
        let print = some();
        assert_eq!(print.compare(&print), Comparison::Same);
        let racy = Fingerprint { racy: true, ..print };
        assert_eq!(racy.compare(&print), Comparison::Unknown(Doubt::Racy));
        assert_eq!(print.compare(&racy), Comparison::Same, "the later look is not at stake");
        let linked = Fingerprint { ctime: (1 << 40, 8), ..print };
        assert_eq!(print.compare(&linked), Comparison::Unknown(Doubt::OnlyCtime));
        let copied_up = Fingerprint { birth: None, ..print };
        assert_eq!(print.compare(&copied_up), Comparison::Same);
        for changed in [
            Fingerprint { size: 1, ..print },
            Fingerprint { mtime: (-5, 0), ..print },
            Fingerprint { ino: 5, ..print },
            Fingerprint { birth: Some((3, 5)), ..print },
        ] {
            assert_eq!(print.compare(&changed), Comparison::Changed);
        }
    }

    #[test]
    fn a_fingerprint_within_a_tick_of_a_change_is_racy_unless_times_are_fine() {
        let at = |nanoseconds| UNIX_EPOCH + Duration::new(100, nanoseconds);
        assert!(is_within_tick((100, 5), at(9_000_000), false));
        assert!(is_within_tick((100, 5), at(0), false), "a clock that went back");
        assert!(!is_within_tick((100, 5), at(10_000_006), false));
        assert!(!is_within_tick((100, 5), at(6), true));
        assert!(is_within_tick((99, 0), at(0), true), "a filesystem that keeps seconds");
    }

    #[test]
    fn the_fingerprint_of_a_file_has_its_times_and_inode() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(77).unwrap();
        let (print, found) = (Fingerprint::of(&file).unwrap(), file.metadata().unwrap());
        assert_eq!((print.size, print.ino), (77, found.ino()));
        assert_eq!(print.mtime, (found.mtime(), found.mtime_nsec() as u32));
        assert_eq!(print.ctime, (found.ctime(), found.ctime_nsec() as u32));
        file.set_len(78).unwrap();
        assert_ne!(print.compare(&Fingerprint::of(&file).unwrap()), Comparison::Same);
    }
}

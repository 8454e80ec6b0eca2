//! The operations of the model test, and how they are drawn.

use rustix::fs::{FallocateFlags, OFlags, RenameFlags};

use crate::common::Random;

/// The number of descriptors that can be open at a time.
pub const SLOTS: usize = 6;

/// Few names, so that operations meet.
pub const NAMES: [&str; 14] = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "d/a",
    "d/b",
    "d/d",
    "d/d/a",
    "e/a",
    "e/b",
    "e/e",
    "e/e/a",
    "missing/a",
];

/// One call, with all its arguments.
#[derive(Debug, Clone)]
pub struct Operation {
    /// As root, or as another user.
    pub as_user: bool,
    /// The call.
    pub call: Call,
}

/// A name below the root of a world.
pub type Name = &'static str;

/// The calls, named after the system calls they end in.
#[derive(Debug, Clone)]
pub enum Call {
    Open { slot: usize, name: Name, flags: OFlags },
    Close { slot: usize },
    Read { slot: usize, offset: u64, len: usize },
    Write { slot: usize, offset: u64, len: usize, byte: u8 },
    MapWrite { slot: usize, offset: u64, len: usize, byte: u8 },
    MapRead { slot: usize, offset: u64, len: usize },
    Truncate { slot: usize, len: u64 },
    Fallocate { slot: usize, mode: FallocateFlags, offset: u64, len: u64 },
    CopyRange { from: usize, to: usize, input: u64, output: u64, len: usize },
    Sync { slot: usize },
    StatOpen { slot: usize },
    ChmodOpen { slot: usize, mode: u32 },
    Stat { name: Name },
    List { name: Name },
    Mkdir { name: Name },
    Rmdir { name: Name },
    Unlink { name: Name },
    Rename { from: Name, to: Name, flags: RenameFlags },
    Link { from: Name, to: Name },
    Symlink { target: Name, name: Name },
    ReadLink { name: Name },
    MakeFifo { name: Name },
    Chmod { name: Name, mode: u32 },
    Chown { name: Name, user: Option<u32>, group: Option<u32> },
    SetTimes { name: Name, seconds: i64, nanoseconds: i64 },
    SetXattr { name: Name, key: &'static str, len: usize },
    RemoveXattr { name: Name, key: &'static str },
    ReadAll { name: Name },
}

impl Operation {
    /// Draws one.
    pub fn random(random: &mut Random) -> Operation {
        Operation::random_on(random, &NAMES)
    }

    /// Draws one that is about these names.
    pub fn random_on(random: &mut Random, names: &[Name]) -> Operation {
        Operation { as_user: random.once_in(4), call: Call::random(random, names) }
    }
}

impl Call {
    fn random(random: &mut Random, names: &[Name]) -> Call {
        let slot = random.below(SLOTS as u64) as usize;
        let name: Name = random.pick(names);
        match random.below(100) {
            0..13 => Call::Open { slot, name, flags: open_flags(random) },
            13..15 => Call::Close { slot },
            15..21 => Call::Read { slot, offset: offset(random), len: len(random) },
            21..33 => {
                let byte = random.next() as u8;
                Call::Write { slot, offset: offset(random), len: len(random), byte }
            }
            33..37 => {
                let byte = random.next() as u8;
                Call::MapWrite { slot, offset: offset(random), len: len(random), byte }
            }
            37..40 => Call::MapRead { slot, offset: offset(random), len: len(random) },
            40..44 => Call::Truncate { slot, len: offset(random) },
            44..48 => {
                let mode = fallocate_mode(random);
                Call::Fallocate { slot, mode, offset: offset(random), len: len(random) as u64 }
            }
            48..51 => {
                let (to, input) = (random.below(SLOTS as u64) as usize, offset(random));
                Call::CopyRange { from: slot, to, input, output: offset(random), len: len(random) }
            }
            51 => Call::Sync { slot },
            52..55 => Call::StatOpen { slot },
            55 => Call::ChmodOpen { slot, mode: mode(random) },
            56..59 => Call::Stat { name },
            59..61 => Call::List { name: random.pick(&["", "d", "e", "d/d", "a"]) },
            61..66 => Call::Mkdir { name },
            66..69 => Call::Rmdir { name },
            69..74 => Call::Unlink { name },
            74..80 => {
                Call::Rename { from: name, to: random.pick(names), flags: rename_flags(random) }
            }
            80..83 => Call::Link { from: name, to: random.pick(names) },
            83..85 => Call::Symlink { target: random.pick(&["a", "d", "../e/a", "nothing"]), name },
            85 => Call::ReadLink { name },
            86 => Call::MakeFifo { name },
            87..89 => Call::Chmod { name, mode: mode(random) },
            89..91 => {
                let user = random.pick(&[None, Some(0), Some(40_001)]);
                Call::Chown { name, user, group: random.pick(&[None, Some(0), Some(40_100)]) }
            }
            91..93 => {
                let seconds = random.below(900_000_000) as i64 - 1000;
                Call::SetTimes { name, seconds, nanoseconds: random.below(1_000_000_000) as i64 }
            }
            93..95 => Call::SetXattr { name, key: key(random), len: random.below(40) as usize },
            95 => Call::RemoveXattr { name, key: key(random) },
            _ => Call::ReadAll { name },
        }
    }
}

fn open_flags(random: &mut Random) -> OFlags {
    let access =
        random.pick(&[OFlags::RDWR, OFlags::RDWR, OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY]);
    let extra = random.pick(&[
        OFlags::CREATE,
        OFlags::CREATE,
        OFlags::CREATE,
        OFlags::CREATE.union(OFlags::EXCL),
        OFlags::CREATE.union(OFlags::TRUNC),
        OFlags::empty(),
        OFlags::APPEND,
        OFlags::TRUNC,
        OFlags::NOFOLLOW,
    ]);
    // Without O_NONBLOCK a fifo would wait for its other end.
    access | extra | OFlags::NONBLOCK
}

/// Offsets near page borders, near the start and far out.
fn offset(random: &mut Random) -> u64 {
    let base = random.pick(&[0, 0, 1000, 4096, 8192, 65_536, 131_072, 300_000, 1 << 20]);
    (base + random.below(5)).saturating_sub(random.below(3))
}

fn len(random: &mut Random) -> usize {
    let base = random.pick(&[1, 2, 100, 4096, 4097, 10_000, 70_000, 200_000]);
    base + random.below(3) as usize
}

impl Operation {
    /// What the kernel writes itself loses setuid and setgid at any write; on a plain directory
    /// they stay when it is root that writes through a descriptor which was opened before.
    pub fn leave_set_id_out(&mut self) {
        if let Call::Chmod { mode, .. } | Call::ChmodOpen { mode, .. } = &mut self.call {
            *mode &= 0o1777;
        }
    }

    /// chown(2) of neither owner nor group by root keeps setuid and setgid of a file that is open to
    /// be written: the kernel sends the same request before a write, and root's write keeps them.
    pub fn leave_empty_chown_of_root_out(&mut self) {
        if let Call::Chown { user: None, group, .. } = &mut self.call
            && !self.as_user
        {
            group.get_or_insert(0);
        }
    }
}

fn mode(random: &mut Random) -> u32 {
    random.pick(&[0o777, 0o644, 0o600, 0o666, 0o755, 0o4777, 0o2755, 0o2766, 0o1777, 0o000, 0o444])
}

fn key(random: &mut Random) -> &'static str {
    random.pick(&["user.one", "user.two", "trusted.three", "nonsense"])
}

fn fallocate_mode(random: &mut Random) -> FallocateFlags {
    let keep = FallocateFlags::KEEP_SIZE;
    random.pick(&[
        FallocateFlags::empty(),
        keep,
        FallocateFlags::PUNCH_HOLE.union(keep),
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE.union(keep),
    ])
}

fn rename_flags(random: &mut Random) -> RenameFlags {
    let plain = RenameFlags::empty();
    // A scratch of others than root has no place for the device that this leaves.
    let whiteout = match rustix::process::geteuid().is_root() {
        true => RenameFlags::WHITEOUT,
        false => plain,
    };
    random.pick(&[plain, whiteout, RenameFlags::NOREPLACE, RenameFlags::EXCHANGE])
}

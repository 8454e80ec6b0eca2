//! The steps of the plane test, and the sequences that are made of them.

use rustix::fs::OFlags;

/// What is done to one file, or with what is open or mapped of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Opens it by its name and, if the flags allow it, writes a block.
    Open(OFlags),
    /// Opens it for reading and writing by a second name, which it gets by link(2).
    LinkAndOpen,
    /// Maps it shared, for reading and writing, from the descriptor opened last.
    MapShared,
    /// The same, and closes the descriptor.
    MapSharedAndClose,
    /// Maps it private from the descriptor opened last, and closes it.
    MapPrivateAndClose,
    /// Stores into every shared mapping.
    Store,
    /// Unmaps what was mapped first.
    Unmap,
    /// Closes the descriptor opened first.
    CloseFirst,
    /// Closes the descriptor opened last.
    CloseLast,
    /// Writes a block through every descriptor.
    Write,
    /// Synchronises every descriptor.
    Sync,
    /// Removes its name.
    Unlink,
    /// Renames another file over its name.
    RenameOver,
    /// Renames it to the second name.
    RenameAway,
    /// Executes it.
    Execute,
    /// Cuts it to one page through the descriptor opened last.
    Cut,
    /// Makes it longer by its name.
    Grow,
    /// Preallocates through the descriptor opened last.
    Preallocate,
    /// Punches a hole through the descriptor opened last.
    Punch,
    /// Gives it the setuid bit.
    SetUserId,
    /// `advise random` in the control file.
    AdviseRandom,
    /// `advise willneed` in the control file.
    AdviseWillNeed,
    /// `lock` in the control file.
    Lock,
    /// `flush` in the control file.
    Flush,
    /// Puts rules in force that ask for the other plane.
    Reload,
}

/// How a file is opened for each kind of access.
const FLAGS: [OFlags; 7] = [
    OFlags::empty(),
    OFlags::APPEND,
    OFlags::TRUNC,
    OFlags::DIRECT,
    OFlags::SYNC,
    OFlags::NONBLOCK,
    OFlags::NOATIME,
];

/// Everything but the opens by name.
const OTHERS: [Step; 24] = [
    Step::LinkAndOpen,
    Step::MapShared,
    Step::MapSharedAndClose,
    Step::MapPrivateAndClose,
    Step::Store,
    Step::Unmap,
    Step::CloseFirst,
    Step::CloseLast,
    Step::Write,
    Step::Sync,
    Step::Unlink,
    Step::RenameOver,
    Step::RenameAway,
    Step::Execute,
    Step::Cut,
    Step::Grow,
    Step::Preallocate,
    Step::Punch,
    Step::SetUserId,
    Step::AdviseRandom,
    Step::AdviseWillNeed,
    Step::Lock,
    Step::Flush,
    Step::Reload,
];

/// The kinds of access.
const ACCESS: [OFlags; 3] = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR];

/// Every way to open.
pub fn opens() -> Vec<Step> {
    let with = |flags| ACCESS.map(|access| Step::Open(access.union(flags)));
    FLAGS.into_iter().flat_map(with).collect()
}

/// Every step.
pub fn all() -> Vec<Step> {
    opens().into_iter().chain(OTHERS).collect()
}

/// Every way to choose one of each list, in order.
pub fn product<const N: usize>(lists: [&[Step]; N]) -> Vec<Vec<Step>> {
    let mut sequences = vec![Vec::new()];
    for list in lists {
        let longer = |start: &Vec<Step>| {
            let start = start.clone();
            list.iter().map(move |&step| [&start[..], &[step]].concat())
        };
        sequences = sequences.iter().flat_map(longer).collect();
    }
    sequences
}

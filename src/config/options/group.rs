//! The groups that options belong to.

use super::table::{Known, known};

/// The group of an option, in the order of the manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The mapping of files.
    View,
    /// Where what is written by `access=copy` stays.
    Scratch,
    /// The serving of the mount.
    Daemon,
    /// The program `mmapfs` alone, not the library.
    Program,
    /// FUSE, with libfuse's meaning.
    Fuse,
    /// The flags of mount(2).
    Kernel,
    /// For mount(8) and fstab(5) alone.
    Passed,
    /// Known, and refused.
    Refused,
}

impl Group {
    /// Every group.
    pub const ALL: [Group; 8] = [
        Group::View,
        Group::Scratch,
        Group::Daemon,
        Group::Program,
        Group::Fuse,
        Group::Kernel,
        Group::Passed,
        Group::Refused,
    ];

    /// Its heading in the manual.
    pub fn title(self) -> &'static str {
        match self {
            Group::View => "Views",
            Group::Scratch => "Scratch (with access=copy)",
            Group::Daemon => "Daemon",
            Group::Program => "Log and rights of the daemon",
            Group::Fuse => "FUSE",
            Group::Kernel => "Kernel (mount(8) explains them)",
            Group::Passed => "Passed over (they are for mount(8))",
            Group::Refused => "Known and refused",
        }
    }

    /// The options of the group, in the order of the table.
    pub fn members(self) -> impl Iterator<Item = &'static Known> {
        known().iter().filter(move |known| known.group == self)
    }
}

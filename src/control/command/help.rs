//! The answer to `help`, and the source of the manual: one table of verbs, and notes that hold for
//! all of them.

use std::fmt;

use super::Verb;
use crate::advice::{Advice, Effect};

/// The text about a verb.
struct Entry {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    doc: &'static str,
    example: &'static str,
}

/// The notes on the words that several verbs take.
pub const NOTES: &str = "\
PATH    relative to the root of the mount; `.` or `/` is the root. It is the last word and takes
        the rest of the line, so it may hold blanks. Where it could be taken for another word,
        write `--` or a slash before it: `flush -- 0-1 of it`, `flush /0-1 of it`. Any name can be
        given in double quotes, with the escapes \\\\ \\\" \\n \\t \\xHH \\NNN (octal) and those of JSON:
        `flush \"two\\nlines\"`. A newline ends the command: names of others have to be quoted.
RANGE   OFF-END, OFF+LEN, -END (from the start) or OFF- (to the end), in bytes or with K, M, G or
        T (binary); END is the first byte that is not meant. No range, or `-`: the whole file.
json    before a verb: the answer comes as one line of JSON, with numbers as numbers.
Errors  write(2) fails with EINVAL (unknown verb, wrong argument), ENOENT (no such path), EPERM
        (not allowed), ERANGE (outside the file), ENOTSUP (not possible here) or the errno of what
        failed; the answer to read is then one line `error: REASON`.
";

impl Verb {
    /// Every verb, in the order of the manual.
    pub const ALL: &'static [Verb] = &[
        Verb::Advise,
        Verb::Flush,
        Verb::Status,
        Verb::Diff,
        Verb::Maps,
        Verb::Lock,
        Verb::Unlock,
        Verb::Reload,
        Verb::Help,
        Verb::Version,
        Verb::Log,
    ];

    /// The word itself.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Its line of the grammar.
    pub fn usage(self) -> &'static str {
        self.entry().usage
    }

    /// Its effect, in a few words without a full stop.
    pub fn summary(self) -> &'static str {
        self.entry().summary
    }

    /// Its effect, as one paragraph without line breaks.
    pub fn doc(self) -> &'static str {
        self.entry().doc
    }

    /// A line that can be written to a control file.
    pub fn example(self) -> &'static str {
        self.entry().example
    }

    fn entry(self) -> Entry {
        match self {
            Verb::Advise => Entry {
                name: "advise",
                usage: "advise [destroy] ADVICE [RANGE] PATH",
                summary: "tell the kernel how pages will be used",
                doc: "Gives the advice to the kernel for the mapping of the file, as madvise(2) \
                      does, and answers how many pages of the range were in the page cache before \
                      and after, and how long it took. A hint is rounded outward to whole pages, \
                      an advice that discards or destroys is rounded inward, so that it never \
                      touches a byte outside the range. An advice that marks the mapping (random, \
                      sequential, hugepage and the like) is given again to every later mapping of \
                      the file. An advice that destroys bytes of the backing file needs the word \
                      `destroy` before it. In a scratch (access=copy) so do dontneed, \
                      dontneed_locked, free and wipeonfork where pages were written: without it \
                      the answer is how many, and nothing is done. With it, pages that were \
                      written show the base again, as those of a private mapping do; files that \
                      are whole in the scratch have no base and keep their bytes. `remove` makes \
                      zeros in the scratch alone, and populate_write copies the pages. Names are taken in any case, with or without MADV_.",
                example: "advise willneed 0-1M data/a.bin",
            },
            Verb::Flush => Entry {
                name: "flush",
                usage: "flush [sync|async|invalidate] [RANGE] PATH",
                summary: "write changed pages to the backing file",
                doc: "Writes the changed pages of the range to the backing file, as msync(2) does, \
                      and answers how many pages were dirty before and after. `sync`, which is \
                      meant when nothing is said, waits until the bytes are on the device; `async` \
                      leaves the writing to the kernel and returns; `invalidate` writes as `sync` \
                      does and asks for other mappings of the file to be brought up to date, \
                      which fails with EBUSY where pages are locked. The range is rounded outward \
                      to whole pages. In a scratch it is a barrier: what was written to the scratch \
                      is durable afterwards, and the base is left alone.",
                example: "flush sync data/a.bin",
            },
            Verb::Status => Entry {
                name: "status",
                usage: "status [PATH]",
                summary: "report on the mount, or on a file",
                doc: "Without a path, reports on the mount: its options, what the kernel offers \
                      and what of it is in use, and counts of inodes, handles, mappings, requests \
                      and errors, and of a scratch its layers, what is in it and how much room is \
                      left. With a path, reports on that file: how it is served, and how \
                      many of its pages are mapped, resident, dirty and locked. What cannot be \
                      measured is `unknown`.",
                example: "status data/a.bin",
            },
            Verb::Diff => Entry {
                name: "diff",
                usage: "diff [ranges] [expand] [PATH]",
                summary: "list what a scratch has changed",
                doc: "Lists the differences between a scratch (access=copy) and its base, one to a \
                      line, sorted by path: a letter, a mark and the path. The letters are A \
                      (added), M (content modified), D (deleted), R (renamed, with the old path \
                      and the new one), T (another type) and m (only owner, mode, access lists or \
                      extended attributes). The mark C says that the base has changed below the \
                      change since the first touch. A file that was written with the bytes that \
                      were there, or removed and made again the same, is no difference, and times \
                      alone are none. With `ranges` the ranges of bytes that differ follow each \
                      line, END exclusive; with `expand` everything below a deleted directory has \
                      a line. With a path, the differences at and below it are listed; it need \
                      not exist any more. The cost follows what was changed: files are compared \
                      in the pages that the scratch has.",
                example: "diff ranges data",
            },
            Verb::Maps => Entry {
                name: "maps",
                usage: "maps",
                summary: "list the mappings",
                doc: "Lists the mappings of the daemon, one to a line, in the manner of \
                      /proc/PID/maps (proc_pid_maps(5)): addresses, permissions, offset, device, \
                      inode and path, then access=, flags=, advice= and resident= (pages).",
                example: "maps",
            },
            Verb::Lock => Entry {
                name: "lock",
                usage: "lock [RANGE] PATH",
                summary: "lock pages in memory",
                doc: "Reads the range into memory and keeps it there, as mlock(2) does, until it \
                      is unlocked or the mount ends. RLIMIT_MEMLOCK of the daemon bounds how much \
                      can be locked. The range is rounded outward to whole pages.",
                example: "lock 0-64M index.db",
            },
            Verb::Unlock => Entry {
                name: "unlock",
                usage: "unlock [RANGE] PATH",
                summary: "undo lock",
                doc: "Lets the pages of the range be taken out of memory again, as munlock(2) \
                      does. The range is rounded inward to whole pages, so that no page is \
                      unlocked that was not meant whole.",
                example: "unlock index.db",
            },
            Verb::Reload => Entry {
                name: "reload",
                usage: "reload",
                summary: "read the rules file again",
                doc: "Reads the file of the mount option rules= again, as SIGHUP makes the daemon \
                      do. When it has a mistake, the answer names the line, and the old rules \
                      stay. New rules hold for files that are opened from then on. Rules that \
                      came from a pipe were read once: they stay, and the answer says so.",
                example: "reload",
            },
            Verb::Help => Entry {
                name: "help",
                usage: "help [VERB]",
                summary: "explain the verbs",
                doc: "Lists the verbs, or explains one of them.",
                example: "help advise",
            },
            Verb::Version => Entry {
                name: "version",
                usage: "version",
                summary: "report the versions",
                doc: "Reports the version of the daemon and of the FUSE protocol that it speaks \
                      with the kernel.",
                example: "version",
            },
            Verb::Log => Entry {
                name: "log",
                usage: "log LEVEL",
                summary: "set the level of the log",
                doc: "Sets what the daemon logs from then on: off, error, warn, info, debug (one \
                      line a request) or trace.",
                example: "log debug",
            },
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The answer to `help`, or to `help VERB`: lines of text, each ended by a newline.
pub fn text(verb: Option<Verb>) -> String {
    match verb {
        Some(verb) => verb_text(verb),
        None => overview(),
    }
}

fn overview() -> String {
    let width = Verb::ALL.iter().map(|verb| verb.usage().len()).max().unwrap_or(0);
    let mut text = String::from("One command to a line:\n\n");
    for verb in Verb::ALL {
        text += &format!("  {:width$}  {}\n", verb.usage(), verb.summary());
    }
    text + &format!("\n{NOTES}\n`help VERB` says more; `help advise` lists every ADVICE.\n")
}

fn verb_text(verb: Verb) -> String {
    let list = if verb == Verb::Advise { advice_text() + "\n" } else { String::new() };
    let doc = wrap(verb.doc(), 92);
    format!("{}\n\n{doc}\n\n{list}Example: {}\n", verb.usage(), verb.example())
}

/// The list of advice names with what each does, grouped by what it can do to the bytes.
pub fn advice_text() -> String {
    let mut groups = Vec::new();
    for effect in [Effect::Hint, Effect::Discard, Effect::Destroy, Effect::Forbidden] {
        let mut group = format!("{}\n", heading(effect));
        for advice in Advice::ALL.iter().filter(|advice| advice.effect() == effect) {
            group += &format!("  {advice:15}  {}\n", advice.summary());
        }
        groups.push(group);
    }
    groups.join("\n")
}

/// The heading of the advices with this effect.
fn heading(effect: Effect) -> &'static str {
    match effect {
        Effect::Hint => "Hints: the bytes stay what they are; rounded outward to pages.",
        Effect::Discard => {
            "Discards: the mapping drops its pages, the backing file keeps its bytes; rounded \
             inward to pages."
        }
        Effect::Destroy => {
            "Destroys: the bytes are gone from the backing file; needs the word `destroy`; \
             rounded inward to pages."
        }
        Effect::Forbidden => "Always refused: they would break the memory of the daemon.",
    }
}

/// Breaks a paragraph into lines of at most `width` characters.
fn wrap(paragraph: &str, width: usize) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > width {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
    }
    text
}

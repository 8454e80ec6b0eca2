//! The control file: one command set for shells, programs and operators.
//!
//! A client writes one command to a line and reads the answer on the same descriptor. The command
//! line speaks the same words: it builds a [`command::Command`] and prints a [`report::Report`].
//!
//! ```text
//! LINE    = [ json ] COMMAND
//! COMMAND = advise [destroy] ADVICE [RANGE] PATH
//!         | flush [sync|async|invalidate] [RANGE] PATH
//!         | status [PATH]
//!         | maps
//!         | lock [RANGE] PATH
//!         | unlock [RANGE] PATH
//!         | reload
//!         | help [VERB]
//!         | version
//!         | log LEVEL
//! RANGE   = OFF-END | OFF+LEN | -END | OFF- | -        bytes, with K, M, G or T; END is exclusive
//! LEVEL   = off | error | warn | info | debug | trace
//! ```
//!
//! - Words are separated by blanks (spaces and tabs). `json` asks for the answer as one JSON line.
//! - PATH is relative to the root of the mount; leading slashes are dropped, and `.` or `/` is the
//!   root. It takes the rest of the line, blanks included, and may hold any byte but NUL and
//!   newline. `..` is refused.
//! - A word is a RANGE only when it parses as one and a further word follows, so that `flush 0-1`
//!   flushes a file named `0-1`. A word `--`, or a slash, before PATH says that PATH begins there:
//!   `flush -- 0-1 of it` and `flush /0-1 of it`. A name that begins with a blank needs the slash.
//!   Programs should always write the slash, as [`command::Line::to_bytes`] does.
//! - A line has at most [`command::LONGEST_LINE`] bytes.

pub mod command;
pub mod counters;
pub mod directory;
pub mod exec;
pub mod report;
mod session;
mod state;

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
//! - PATH may be in double quotes, and can then hold a newline as well. The escapes in it are those
//!   of [`crate::shown::unquote`]: a string of JSON is one, and so is a name as git quotes it. Only
//!   blanks may follow the closing quote. A name that begins with a quote has to be in quotes, or
//!   needs a slash before it.
//! - A word is a RANGE only when it parses as one and a further word follows, so that `flush 0-1`
//!   flushes a file named `0-1`. A word `--`, or a slash, before PATH says that PATH begins there:
//!   `flush -- 0-1 of it` and `flush /0-1 of it`. A name that begins with a blank needs the slash,
//!   or quotes.
//! - A newline ends a command, always. Programs that give names of others quote them, as
//!   [`command::Line::to_bytes`] does: a name that is written as it is may hold further commands.
//! - A line has at most [`command::LONGEST_LINE`] bytes.

pub mod command;
pub mod control_tree;
pub mod counters;
pub mod exec;
pub mod own_thread;
mod reach;
pub mod report;
pub mod router;
mod session;
mod state;
#[cfg(test)]
mod testing;

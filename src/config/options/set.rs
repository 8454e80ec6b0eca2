//! The effect of each option with its value.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

use super::MountOptions;
use crate::config::{BaseChanged, ControlVisibility, OpenRequests, WatchMode};
use crate::units::{nearest, parse_seconds, parse_size, quote};

/// An option's effect, or the reason why its value is bad.
pub(super) type Set = fn(&mut MountOptions, &OsStr) -> Result<(), String>;

/// The longest that an event loop stays awake for, in microseconds.
const MOST_BUSY_POLL: u64 = 1000;

/// The most event loops.
const MOST_THREADS: usize = 64;
/// The smallest `max_read` that the kernel heeds (fs/fuse/inode.c raises smaller ones to it).
const LEAST_READ: u32 = 4096;
/// The longest file name (limits.h, `NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// The levels of the log by name.
pub const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn text(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "its value is not UTF-8 text".into())
}

fn parse<T>(value: &OsStr) -> Result<T, String>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text(value)?.parse().map_err(|error: T::Err| error.to_string())
}

fn number<T: FromStr>(value: &OsStr) -> Result<T, String> {
    let word = text(value)?;
    word.parse().map_err(|_| format!("{} is not a number that it can have", quote(word)))
}

fn one_of<T: Copy>(value: &OsStr, known: &[(&'static str, T)]) -> Result<T, String> {
    let word = text(value)?;
    let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names = known.iter().map(|(name, _)| *name);
        match nearest(word, names.clone()) {
            Some(near) => format!("there is no {}: did you mean `{near}`?", quote(word)),
            None => format!(
                "there is no {}: known are {}",
                quote(word),
                names.collect::<Vec<_>>().join(" ")
            ),
        }
    })
}

pub(super) fn access(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.view.access = parse(value)?;
    Ok(())
}

pub(super) fn flags(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.view.flags = Some(parse(value)?);
    Ok(())
}

pub(super) fn open(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.settings.open =
        one_of(value, &OpenRequests::ALL.map(|choice| (choice.name(), choice)))?;
    Ok(())
}

pub(super) fn plane(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.view.plane = Some(parse(value)?);
    Ok(())
}

pub(super) fn prot(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.view.prot = Some(parse(value)?);
    Ok(())
}

pub(super) fn advice(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.view.advice = Some(parse(value)?);
    Ok(())
}

pub(super) fn rules(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.rules = Some(PathBuf::from(value));
    Ok(())
}

pub(super) fn scratch(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.scratch.dir = Some(PathBuf::from(value));
    Ok(())
}

pub(super) fn scratch_max(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.scratch.max = Some(parse(value)?);
    Ok(())
}

pub(super) fn copy_up(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.scratch.copy_up = Some(parse_size(text(value)?).map_err(|error| error.to_string())?);
    Ok(())
}

pub(super) fn base_changed(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let known =
        [("eio", BaseChanged::Eio), ("refuse", BaseChanged::Refuse), ("mix", BaseChanged::Mix)];
    options.scratch.base_changed = Some(one_of(value, &known)?);
    Ok(())
}

pub(super) fn control(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let known = ControlVisibility::ALL.map(|choice| (choice.name(), choice));
    options.control = one_of(value, &known)?;
    Ok(())
}

pub(super) fn control_name(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let bytes = value.as_bytes();
    if bytes.contains(&b'/') || bytes == b"." || bytes == b".." || bytes.len() > LONGEST_NAME {
        return Err("its value is one file name".into());
    }
    options.settings.control_name = value.to_owned();
    Ok(())
}

pub(super) fn busy_poll(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let micros: u64 = number(value)?;
    if micros > MOST_BUSY_POLL {
        return Err(format!("at most {MOST_BUSY_POLL} microseconds"));
    }
    options.settings.busy_poll = Duration::from_micros(micros);
    Ok(())
}

pub(super) fn threads(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let threads = number(value)?;
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(format!("its value is from 1 to {MOST_THREADS}"));
    }
    options.settings.threads = threads;
    Ok(())
}

pub(super) fn max_mappings(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let count = number(value)?;
    if count == 0 {
        return Err("its value is at least 1".into());
    }
    options.settings.max_mappings = Some(count);
    Ok(())
}

pub(super) fn log(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.settings.log = Some(one_of(value, &LEVELS)?);
    Ok(())
}

pub(super) fn log_file(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.log_file = Some(PathBuf::from(value));
    Ok(())
}

pub(super) fn fsname(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.fsname = Some(value.to_owned());
    Ok(())
}

pub(super) fn subtype(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let word = text(value)?;
    if !word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("its value is letters, digits and any of - _ .".into());
    }
    options.kernel.subtype = word.to_owned();
    Ok(())
}

pub(super) fn max_read(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let bytes = number(value)?;
    if bytes < LEAST_READ {
        return Err(format!("its value is at least {LEAST_READ}"));
    }
    options.kernel.max_read = Some(bytes);
    Ok(())
}

pub(super) fn watch(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let known = WatchMode::ALL.map(|choice| (choice.name(), choice));
    options.settings.watch = one_of(value, &known)?;
    Ok(())
}

fn seconds(value: &OsStr) -> Result<Duration, String> {
    parse_seconds(text(value)?).map_err(|error| error.to_string())
}

pub(super) fn entry_timeout(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.settings.entry_timeout = Some(seconds(value)?);
    Ok(())
}

pub(super) fn attr_timeout(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.settings.attr_timeout = Some(seconds(value)?);
    Ok(())
}

pub(super) fn negative_timeout(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.settings.negative_timeout = Some(seconds(value)?);
    Ok(())
}

fn context(options: &mut MountOptions, name: &'static str, value: &OsStr) -> Result<(), String> {
    options.kernel.contexts.retain(|(other, _)| *other != name);
    options.kernel.contexts.push((name, value.to_owned()));
    Ok(())
}

pub(super) fn context_all(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    context(options, "context", value)
}

pub(super) fn context_fs(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    context(options, "fscontext", value)
}

pub(super) fn context_default(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    context(options, "defcontext", value)
}

pub(super) fn context_root(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    context(options, "rootcontext", value)
}

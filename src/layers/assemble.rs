//! A scratch mount put together: the base, seen so that nothing can change it, and the scratch.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::changed;
use super::overlay::{Overlay, OverlayOptions};
use super::scratch::Scratch;
use crate::config::BaseChanged;
use crate::config::rules::RuleSet;
use crate::error::Failure;
use crate::flags::{Access, MapMode, ViewOptions};
use crate::shown::Show;
use crate::sys;
use crate::sys::detached::Use;
use crate::volume::{Coverage, Policy, Volume, VolumeOptions};

#[cfg(test)]
mod tests;

/// Puts an overlay over the base that `options` opens. What its policy copies is written to the
/// scratch; the rest is read and written in the base itself. With `share` unchanged files that are
/// opened to be read are read there too. `base_changed` says what becomes of partial copies whose
/// base was changed since.
///
/// # Errors
/// Those of opening the base and the scratch; a base that has changed, where that is refused.
pub fn assemble(
    options: VolumeOptions,
    scratch: Scratch,
    share: bool,
    base_changed: BaseChanged,
) -> Result<Overlay, Failure> {
    let below = |mode: MapMode| mode.in_base();
    let Policy { mode, rules } = &options.policy;
    let written = |rules: &RuleSet| rules.rules().iter().any(|rule| below(rule.mode).writable());
    let may = if below(*mode).writable() || written(rules) { Use::Write } else { Use::Read };

    let base = seen_apart(&options.source, may);
    let source = match &base {
        Some(base) => sys::fd_path(base.as_fd()),
        None => options.source.clone(),
    };
    let policy = Policy { mode: below(*mode), rules: rules.clone().with_modes(below) };
    let shown = options.source.shown().to_string();
    let lower = VolumeOptions { source, policy, keeps_atime: false, reserved: None, ..options };
    let (max_mappings, reserved) = (lower.max_mappings, options.reserved);
    let lower = open(lower, &shown)?;

    let upper = VolumeOptions {
        source: sys::fd_path(scratch.root()),
        only: None,
        root_is_file: false,
        reserved: None,
        policy: Policy { mode: writing()?, rules: RuleSet::default() },
        max_mappings,
        keeps_atime: options.keeps_atime,
        keeps_attributes: options.keeps_attributes,
    };
    let place = scratch.layout().dir().to_owned();
    let shown = place.shown().to_string();
    let upper = open(upper, &shown)?;
    // Changes of the upper directory come through the mount alone.
    upper.watch(Coverage::Filesystem);
    let overlay = Overlay::new(OverlayOptions {
        scratch,
        upper: Arc::new(upper),
        lowers: vec![Arc::new(lower)],
        reserved,
        policy: options.policy,
        share,
        base_changed,
    })
    .map_err(|err| Failure::failed(shown, format!("opening it: {err}")))?;
    changed::judge(&overlay.changed_bases(), base_changed, &place)?;
    Ok(overlay)
}

fn open(options: VolumeOptions, shown: &str) -> Result<Volume, Failure> {
    Volume::open_source(options).map_err(|err| Failure::failed(shown, format!("opening it: {err}")))
}

/// The base through a mount of its own that can not be written and keeps the times of access.
/// Without privilege there is none: then the times move as they do for every reader.
fn seen_apart(source: &Path, may: Use) -> Option<OwnedFd> {
    sys::detached::clone_mount(source, may)
        .inspect_err(|err| log::info!("{}: a mount of its own: {err}", source.shown()))
        .ok()
}

/// The mode of the files of a scratch.
fn writing() -> Result<MapMode, Failure> {
    let options = ViewOptions { access: Access::Write, ..ViewOptions::default() };
    options.resolve().map_err(|err| Failure::failed("access", err.to_string()))
}

//! The answer of `mount --check`: what would be mounted, and how.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::config::{
    Limit, MountConfig, OpenRequests, ScratchConfig, Settings, SourceKind, may_mount,
};
use crate::error::Failure;
use crate::flags::{MapMode, PlaneChoice, ViewOptions};
use crate::layers::scratch::{COPY_UP, Outlook, Places, SHARE_OF_MEMORY, Scratch};
use crate::shown::{Clean, Name};
use crate::sys;
use crate::units::format_size;

/// A mount that was checked and not made.
#[derive(Debug, Serialize)]
pub struct Plan {
    source: Name,
    source_kind: &'static str,
    mountpoint: Name,
    mountpoint_kind: &'static str,
    #[serde(rename = "type")]
    fstype: String,
    read_only: bool,
    mounted_by: &'static str,
    access: String,
    flags: String,
    prot: String,
    advice: String,
    plane: String,
    /// Why no file will be on the plane `passthrough`, as far as is known without a mount.
    no_passthrough: Option<&'static str>,
    rules_file: Option<Name>,
    rules: Vec<RulePlan>,
    options: Vec<String>,
    fsname: Name,
    scratch: Option<ScratchPlan>,
    control: &'static str,
    #[serde(flatten)]
    settings: Settings,
    log_file: Option<Name>,
}

/// The scratch of what is written by copy.
#[derive(Debug, Serialize)]
struct ScratchPlan {
    /// Its directory; the one that it is made in where it is in memory.
    place: Name,
    /// The action on the directory.
    action: &'static str,
    in_memory: bool,
    kept: bool,
    id: Option<String>,
    created: Option<u64>,
    max: String,
    copy_up: u64,
    share: bool,
}

/// A rule, with its options completed by those of the mount.
#[derive(Debug, Serialize)]
struct RulePlan {
    #[serde(rename = "match")]
    pattern: String,
    line: usize,
    access: String,
    flags: String,
    prot: String,
    advice: String,
    plane: String,
}

impl Plan {
    /// The plan of a mount.
    ///
    /// # Errors
    /// Its scratch cannot be had.
    pub fn of(config: &MountConfig) -> Result<Plan, Failure> {
        let scratch = config.scratch.as_ref().map(|scratch| ScratchPlan::of(scratch, config));
        let scratch = scratch.transpose()?;
        let [access, flags, prot, advice, plane] = words(&config.view, &config.mode);
        let by_kernel = may_mount() && !config.kernel.auto_unmount;
        Ok(Plan {
            source: Name::from(&config.source),
            source_kind: config.source_kind.name(),
            mountpoint: Name::from(&config.mountpoint),
            mountpoint_kind: config.mountpoint_kind.name(),
            fstype: config.kernel.fstype(),
            read_only: config.kernel.read_only,
            mounted_by: if by_kernel { "mount(2)" } else { "fusermount3" },
            access,
            flags,
            prot,
            advice,
            plane,
            no_passthrough: no_passthrough(config),
            rules_file: config.rules_file.as_ref().map(Name::from),
            rules: config.rules.rules().iter().map(RulePlan::of).collect(),
            options: options(config),
            fsname: Name::from(&config.kernel.fsname),
            scratch,
            control: config.control.name(),
            settings: config.settings.clone(),
            log_file: config.log_file.as_ref().map(Name::from),
        })
    }
}

impl ScratchPlan {
    fn of(scratch: &ScratchConfig, config: &MountConfig) -> Result<ScratchPlan, Failure> {
        let places = Places::of_process();
        let outlook = Scratch::outlook(scratch, &config.source, &config.mountpoint, &places)?;
        let (dir, action, state) = match outlook {
            Outlook::InMemory(dir) => (dir, "made in memory", None),
            Outlook::New(dir) => (dir, "made", None),
            Outlook::Adopt(dir) => (dir, "taken over from overlayfs", None),
            Outlook::Again(dir, state) => (dir, "opened again", Some(state)),
        };
        let in_memory = scratch.dir.is_none();
        let max = match (&state, scratch.max) {
            (Some(state), _) => state.max.map_or(Limit::None, Limit::Bytes),
            (None, Some(max)) => max,
            (None, None) if in_memory => Limit::Percent(SHARE_OF_MEMORY),
            (None, None) => Limit::None,
        };
        let copy_up = state.as_ref().map_or(scratch.copy_up, |state| Some(state.copy_up));
        Ok(ScratchPlan {
            place: Name::from(dir),
            action,
            in_memory: state.as_ref().map_or(in_memory, |state| state.kind.in_memory()),
            kept: scratch.dir.is_some(),
            id: state.as_ref().map(|state| state.id.clone()),
            created: state.as_ref().map(|state| state.created),
            max: max.to_string(),
            copy_up: copy_up.unwrap_or(COPY_UP),
            share: scratch.share,
        })
    }
}

impl fmt::Display for ScratchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ScratchPlan { place, action, max, copy_up, .. } = self;
        let copy_up = format_size(*copy_up);
        let kept = if self.kept { "kept" } else { "removed at unmount" };
        write!(f, "{place} ({action}, {kept}) max={max} copy_up={copy_up} ")?;
        write!(f, "share={}", on_off(self.share))
    }
}

impl RulePlan {
    fn of(rule: &crate::config::rules::Rule) -> RulePlan {
        let [access, flags, prot, advice, plane] = words(&rule.view, &rule.mode);
        let pattern = rule.pattern.clone();
        RulePlan { pattern, line: rule.line, access, flags, prot, advice, plane }
    }
}

fn no_passthrough(config: &MountConfig) -> Option<&'static str> {
    if config.settings.open == OpenRequests::None {
        return Some("open=none: the kernel does not ask when a file is opened");
    }
    if !may_mount() {
        return Some("it needs CAP_SYS_ADMIN");
    }
    (sys::kernel_version() < (6, 9)).then_some("this kernel does not offer it: Linux 6.9 does")
}

fn words(view: &ViewOptions, mode: &MapMode) -> [String; 5] {
    let MapMode { flags, prot, advice, plane } = mode;
    let words: [&dyn fmt::Display; 5] = [&view.access, flags, prot, advice, plane];
    words.map(|word| word.to_string())
}

/// The options that the kernel is given, in the words of `-o`.
fn options(config: &MountConfig) -> Vec<String> {
    let kernel = &config.kernel;
    let switches = [
        (kernel.default_permissions, "default_permissions"),
        (kernel.allow_other, "allow_other"),
        (kernel.allow_root, "allow_root"),
        (kernel.auto_unmount, "auto_unmount"),
    ];
    let set = switches.into_iter().filter(|(set, _)| *set).map(|(_, word)| word);
    let mut words: Vec<String> =
        kernel.flag_words().into_iter().chain(set).map(String::from).collect();
    words.extend(kernel.max_read.map(|bytes| format!("max_read={bytes}")));
    let labels = kernel.contexts.iter();
    words.extend(labels.map(|(name, label)| format!("{name}={}", label.to_string_lossy())));
    words
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:12} {value}");
        let file = SourceKind::File.name();
        line("source", &format_args!("{} ({})", self.source, self.source_kind))?;
        line("mountpoint", &format_args!("{} ({})", self.mountpoint, self.mountpoint_kind))?;
        line("type", &self.fstype)?;
        line("fsname", &self.fsname)?;
        line("mounted by", &self.mounted_by)?;
        line("options", &self.options.join(","))?;
        line("read-only", &if self.read_only { "yes" } else { "no" })?;
        line("access", &self.access)?;
        line("flags", &self.flags)?;
        line("prot", &self.prot)?;
        line("advice", &self.advice)?;
        match &self.no_passthrough {
            Some(why) if self.plane == PlaneChoice::Passthrough.to_string() => {
                line("plane", &format_args!("passthrough, which cannot be had: {why}"))?
            }
            _ => line("plane", &self.plane)?,
        }
        match &self.rules_file {
            Some(file) => line("rules", file)?,
            None => line("rules", &"none")?,
        }
        for RulePlan { pattern, line: number, access, flags, prot, advice, plane } in &self.rules {
            let shown = Clean(pattern);
            line(
                &format!("  line {number}"),
                &format_args!(
                    "{shown} access={access} flags={flags} prot={prot} advice={advice} \
                     plane={plane}"
                ),
            )?;
        }
        if let Some(scratch) = &self.scratch {
            line("scratch", scratch)?;
        }
        let settings = &self.settings;
        let control = Name::from(&settings.control_name);
        match self.mountpoint_kind == file || self.control == "off" {
            true => line("control", &"off")?,
            false => line("control", &format_args!("{control} ({})", self.control))?,
        }
        let times = [settings.entry_timeout, settings.attr_timeout, settings.negative_timeout];
        let [entry, attr, negative] = times.map(seconds);
        line("watch", &settings.watch.name())?;
        line("timeouts", &format_args!("entry {entry}, attr {attr}, negative {negative}"))?;
        let (threads, clone_fd) = (settings.threads, on_off(settings.clone_fd));
        line("threads", &format_args!("{threads} (clone_fd {clone_fd})"))?;
        line("sandbox", &on_off(settings.sandbox))?;
        match settings.busy_poll.as_micros() {
            0 => line("busy poll", &"off")?,
            most => line("busy poll", &format_args!("at most {most} us"))?,
        }
        match settings.max_mappings {
            Some(most) => line("mappings", &format_args!("at most {most}"))?,
            None => line("mappings", &"as vm.max_map_count allows")?,
        }
        let level = settings.log.map(|level| level.as_str().to_ascii_lowercase());
        line("log", &level.as_deref().unwrap_or("as MMAPFS_LOG says"))?;
        match &self.log_file {
            Some(file) => line("log file", file),
            None => Ok(()),
        }
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "as watched".into(), |time| format!("{} s", time.as_secs_f64()))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

//! The answer of `mount --check`: what would be mounted, and how.

use std::fmt;

use serde::Serialize;

use crate::config::{MountConfig, SourceKind, may_mount};
use crate::flags::{MapMode, ViewOptions};

/// A mount that was checked and not made. Paths and names that are not UTF-8 text are printed with
/// replacement characters.
#[derive(Debug, Serialize)]
pub struct Plan {
    source: String,
    source_kind: &'static str,
    mountpoint: String,
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
    rules_file: Option<String>,
    rules: Vec<RulePlan>,
    options: Vec<String>,
    fsname: String,
    control: &'static str,
    control_name: String,
    watch: &'static str,
    entry_timeout_s: Option<f64>,
    attr_timeout_s: Option<f64>,
    negative_timeout_s: Option<f64>,
    threads: usize,
    clone_fd: bool,
    max_mappings: Option<u64>,
    log: Option<String>,
    log_file: Option<String>,
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
    pub fn of(config: &MountConfig) -> Plan {
        let [access, flags, prot, advice, plane] = words(&config.view, &config.mode);
        let by_kernel = may_mount() && !config.kernel.auto_unmount;
        Plan {
            source: config.source.display().to_string(),
            source_kind: config.source_kind.name(),
            mountpoint: config.mountpoint.display().to_string(),
            mountpoint_kind: config.mountpoint_kind.name(),
            fstype: config.kernel.fstype(),
            read_only: config.kernel.read_only,
            mounted_by: if by_kernel { "mount(2)" } else { "fusermount3" },
            access,
            flags,
            prot,
            advice,
            plane,
            rules_file: config.rules_file.as_ref().map(|file| file.display().to_string()),
            rules: config.rules.rules().iter().map(RulePlan::of).collect(),
            options: options(config),
            fsname: config.kernel.fsname.to_string_lossy().into_owned(),
            control: config.control.name(),
            control_name: config.control_name.to_string_lossy().into_owned(),
            watch: config.watch.name(),
            entry_timeout_s: config.entry_timeout.map(|time| time.as_secs_f64()),
            attr_timeout_s: config.attr_timeout.map(|time| time.as_secs_f64()),
            negative_timeout_s: config.negative_timeout.map(|time| time.as_secs_f64()),
            threads: config.threads,
            clone_fd: config.clone_fd,
            max_mappings: config.max_mappings,
            log: config.log.map(|level| level.as_str().to_ascii_lowercase()),
            log_file: config.log_file.as_ref().map(|file| file.display().to_string()),
        }
    }
}

impl RulePlan {
    fn of(rule: &crate::config::rules::Rule) -> RulePlan {
        let [access, flags, prot, advice, plane] = words(&rule.view, &rule.mode);
        let pattern = rule.pattern.clone();
        RulePlan { pattern, line: rule.line, access, flags, prot, advice, plane }
    }
}

fn words(view: &ViewOptions, mode: &MapMode) -> [String; 5] {
    let MapMode { flags, prot, advice, plane } = mode;
    let words: [&dyn fmt::Display; 5] = [&view.access, flags, prot, advice, plane];
    words.map(|word| word.to_string())
}

/// What the kernel is told, in the words of `-o`.
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
        line("plane", &self.plane)?;
        line("rules", &self.rules_file.as_deref().unwrap_or("none"))?;
        for RulePlan { pattern, line: number, access, flags, prot, advice, plane } in &self.rules {
            let shown = pattern.escape_debug();
            line(
                &format!("  line {number}"),
                &format_args!(
                    "{shown} access={access} flags={flags} prot={prot} advice={advice} \
                     plane={plane}"
                ),
            )?;
        }
        match self.mountpoint_kind == file || self.control == "off" {
            true => line("control", &"off")?,
            false => line("control", &format_args!("{} ({})", self.control_name, self.control))?,
        }
        let [entry, attr, negative] =
            [self.entry_timeout_s, self.attr_timeout_s, self.negative_timeout_s].map(seconds);
        line("watch", &self.watch)?;
        line("timeouts", &format_args!("entry {entry}, attr {attr}, negative {negative}"))?;
        line("threads", &format_args!("{} (clone_fd {})", self.threads, on_off(self.clone_fd)))?;
        match self.max_mappings {
            Some(most) => line("mappings", &format_args!("at most {most}"))?,
            None => line("mappings", &"as vm.max_map_count allows")?,
        }
        line("log", &self.log.as_deref().unwrap_or("as MMAPFS_LOG says"))?;
        match &self.log_file {
            Some(file) => line("log file", file),
            None => Ok(()),
        }
    }
}

fn seconds(time: Option<f64>) -> String {
    time.map_or_else(|| "as watched".into(), |time| format!("{time} s"))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

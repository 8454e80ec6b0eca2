//! The binary without a mount: usage errors, exit codes, the plan of `--check`, man pages and
//! completions.

#![allow(clippy::unwrap_used)] // A test that cannot go on says where.
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A source with a file in it, an empty mount point, and a place for other files.
struct Places {
    dir: TempDir,
}

impl Places {
    fn new() -> Places {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("src/sub")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::write(dir.path().join("src/file"), "content").unwrap();
        Places { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// Runs the program with these words in the directory of the places, under another name.
    fn run_as(&self, name: &str, words: &[&str]) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_mmapfs"))
            .arg0(name)
            .args(words)
            .current_dir(self.dir.path())
            .env_remove("MMAPFS_LOG")
            .output()
            .unwrap();
        Outcome::of(output)
    }

    fn run(&self, line: &str) -> Outcome {
        self.run_as("mmapfs", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs, and asserts that it fails with this code and one line with this text in it.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, text: &str) {
        let outcome = self.run(line);
        assert_eq!(outcome.code, code, "{line}: {outcome:?}");
        assert!(outcome.err.starts_with("mmapfs: "), "{line}: {outcome:?}");
        assert!(outcome.err.contains(text), "{line}: {outcome:?}");
        assert_eq!(outcome.err.lines().count(), 1, "{line}: {outcome:?}");
        assert_eq!(outcome.out, "", "{line}");
        let mounts = fs::read("/proc/self/mountinfo").unwrap();
        let mounts = String::from_utf8_lossy(&mounts);
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{line} left a mount");
    }
}

#[derive(Debug)]
struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Outcome {
    fn of(output: Output) -> Outcome {
        Outcome {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }
}

/// Whether this machine passes the checks of a mount; says why not.
fn fuse() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        assert!(std::env::var_os("MMAPFS_REQUIRE_FUSE").is_none(), "/dev/fuse is missing");
        eprintln!("skipped: /dev/fuse is missing");
    }
    there
}

#[test]
fn usage_errors_are_one_line_and_exit_with_2() {
    let places = Places::new();
    for (line, text) in [
        ("advse willneed f", "did you mean `advise`?"),
        ("mount src", "<MNT>"),
        ("mount src mnt -o acess=read", "there is no such option: did you mean `access`?"),
        ("src mnt -o ro,threads=0", "option `threads=0`: its value is from 1 to 64"),
        ("src mnt -f -o direct_io", "option `direct_io`: it is refused"),
        ("src mnt -o access=copy,prot=r", "access=copy decides flags and prot"),
        ("src mnt -f -o access=read,prot=rw", "access=read decides flags and prot"),
        ("mount --check src mnt -o flags=popluate", "did you mean `populate`?"),
        ("advise wilneed src/file", "did you mean `willneed`?"),
        ("log loud mnt", "known are"),
        ("completions tcsh", "tcsh"),
    ] {
        places.fails(line, 2, text);
    }
}

#[test]
fn failures_are_one_line_and_exit_with_1() {
    let places = Places::new();
    for (line, text) in [
        ("mount missing mnt", "missing: the source cannot be served: No such file"),
        ("src missing", "missing: it cannot be mounted on: No such file"),
        ("src src", "it is the source itself"),
        ("src src/sub", "it lies inside the source"),
        ("src/sub src", "lies inside it"),
        ("src/file mnt/missing", "cannot be mounted on"),
        ("src src/file", "it is a file"),
        ("src mnt -o rules=missing.toml", "missing.toml: cannot read the rules"),
        ("umount mnt", "it is no mount point"),
        ("umount missing", "No such file"),
        ("umount /proc", "it is a mount of proc, not of mmapfs"),
        ("advise willneed src/file", "src/file: it is not in a mount of mmapfs"),
        ("status src", "src: it is not in a mount of mmapfs"),
        ("reload missing/dir", "No such file"),
    ] {
        places.fails(line, 1, text);
    }
}

#[test]
fn a_failure_in_the_background_reaches_the_parent_with_its_code() {
    let places = Places::new();
    fs::write(places.path("rules.toml"), "[[rule]]\nmatch = \"a\"\nacess = \"read\"\n").unwrap();
    places.fails("src mnt -o rules=rules.toml", 2, "rules.toml:3: ");
    places.fails("src src/sub", 1, "it lies inside the source");
}

#[test]
fn one_failed_path_does_not_keep_the_others_from_being_asked_about() {
    let places = Places::new();
    let outcome = places.run("flush src/file missing/x src/sub");
    assert_eq!((outcome.code, outcome.err.lines().count()), (1, 3), "{outcome:?}");
}

#[test]
fn nothing_asked_for_is_help_and_an_error() {
    let outcome = Places::new().run("");
    assert_eq!((outcome.code, outcome.out.as_str()), (2, ""));
    assert!(outcome.err.contains("Usage: mmapfs <COMMAND>"), "{}", outcome.err);
}

#[test]
fn help_lists_every_mount_option() {
    let places = Places::new();
    let help = places.run("mount --help").succeeded();
    for known in mmapfs::config::options::known() {
        assert!(help.contains(known.name), "{}", known.name);
    }
    assert!(places.run("--help").succeeded().contains("advise"));
    assert!(places.run("advise --help").succeeded().contains("populate_read"));
}

#[test]
fn the_version_comes_as_text_and_as_json() {
    let places = Places::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(places.run("version").succeeded(), format!("mmapfs {version}\n"));
    assert_eq!(places.run("--version").succeeded(), format!("mmapfs {version}\n"));
    let json: Value = serde_json::from_str(&places.run("version --json").succeeded()).unwrap();
    assert_eq!(json["version"], version);
}

#[test]
fn check_prints_the_plan_as_text() {
    let places = Places::new();
    if !fuse() {
        return;
    }
    let rules = "[[rule]]\nmatch = \"*.db\"\nadvice = \"random\"\n";
    fs::write(places.path("rules.toml"), rules).unwrap();
    let plan = places
        .run("mount --check src mnt -o access=read,rules=rules.toml,noatime,attr_timeout=0.5")
        .succeeded();
    let line = |name: &str| {
        let found = plan.lines().find(|line| line.starts_with(name));
        found.and_then(|line| line.get(13..)).unwrap_or_default().to_owned()
    };
    assert_eq!(line("source"), format!("{} (directory)", places.path("src").display()));
    assert_eq!(line("mountpoint"), format!("{} (directory)", places.path("mnt").display()));
    assert_eq!(line("type"), "fuse.mmapfs");
    assert_eq!(line("read-only"), "yes");
    assert_eq!(line("access"), "read");
    assert_eq!(line("prot"), "r");
    assert_eq!(line("options"), "rw,nosuid,nodev,noatime,default_permissions");
    assert_eq!(line("rules"), places.path("rules.toml").display().to_string());
    assert_eq!(line("  line 1"), "*.db access=read flags=shared prot=r advice=random plane=auto");
    assert_eq!(line("control"), ".mmapfs (hidden)");
    assert_eq!(line("timeouts"), "entry as watched, attr 0.5 s, negative as watched");
}

#[test]
fn check_prints_the_plan_as_json_with_numbers_as_numbers() {
    let places = Places::new();
    if !fuse() {
        return;
    }
    let line = "--check --json src/file mnt -o flags=populate,prot=rw,threads=8,clone_fd=off,busy_poll=0,\
                fsname=a\\,b,max_mappings=100,log=debug,log_file=log,exec,max_read=65536";
    let plan: Value = serde_json::from_str(&places.run(line).succeeded()).unwrap();
    assert_eq!(plan["source_kind"], "file");
    assert_eq!(plan["mountpoint_kind"], "directory");
    assert_eq!(plan["access"], "default");
    assert_eq!(plan["flags"], "shared+populate");
    assert_eq!(plan["prot"], "rw");
    assert_eq!(plan["read_only"], false);
    assert_eq!(plan["threads"], 8);
    assert_eq!(plan["busy_poll_us"], 0);
    assert_eq!(plan["clone_fd"], false);
    assert_eq!(plan["max_mappings"], 100);
    assert_eq!(plan["fsname"], "a,b");
    assert!(plan["entry_timeout_s"].is_null());
    assert_eq!(plan["rules_file"], Value::Null);
    assert_eq!(plan["log"], "debug");
    assert_eq!(plan["log_file"], places.path("log").display().to_string());
    let options = plan["options"].as_array().unwrap();
    let words: Vec<&str> = options.iter().filter_map(Value::as_str).collect();
    assert_eq!(words, ["rw", "nosuid", "nodev", "default_permissions", "max_read=65536"]);
    assert!(!places.path("log").exists());
}

#[test]
fn the_helper_of_mount_checks_silently_when_told_to_fake() {
    let places = Places::new();
    if !fuse() {
        return;
    }
    for name in ["mount.mmapfs", "mount.fuse.mmapfs"] {
        let words = ["src", "mnt", "-f", "-n", "-o", "rw,noauto,nofail,x-systemd.automount"];
        assert_eq!(places.run_as(name, &words).succeeded(), "");
        let unknown = ["src", "mnt", "-f", "-o", "zzz"];
        assert_eq!(places.run_as(name, &unknown).code, 2);
        let sloppy = ["src", "mnt", "-fs", "-o", "zzz"];
        assert_eq!(places.run_as(name, &sloppy).succeeded(), "");
    }
}

#[test]
fn man_pages_are_written_into_a_directory_that_may_be_missing() {
    let places = Places::new();
    assert_eq!(places.run("man share/man1").succeeded(), "");
    for name in ["mmapfs.1", "mmapfs-mount.1", "mmapfs-advise.1", "mount.mmapfs.8"] {
        assert!(places.path("share/man1").join(name).is_file(), "{name}");
    }
    places.fails("man src/file", 1, "src/file");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let places = Places::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = places.run(&format!("completions {shell}")).succeeded();
        assert!(script.contains("umount"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let places = Places::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_mmapfs"))
        .args(["mount", "--help"])
        .current_dir(places.dir.path())
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

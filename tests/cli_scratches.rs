//! `mmapfs scratches` and the plans of scratch mounts, without a mount: scratches are made by the
//! library in places of the test's own.

#![allow(clippy::unwrap_used)] // A test that cannot go on says where.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use mmapfs::config::ScratchConfig;
use mmapfs::layers::scratch::{Places, Scratch};
use serde_json::Value;
use tempfile::TempDir;

/// Held while a program is started. Until it executes it holds a copy of every descriptor of this
/// process, and so the locks of scratches.
static STARTING: Mutex<()> = Mutex::new(());

/// Closes a scratch, whose lock is free afterwards.
fn close(scratch: Scratch) {
    let _alone = STARTING.lock().unwrap();
    drop(scratch);
}

struct World {
    dir: TempDir,
}

impl World {
    fn new() -> World {
        let dir = TempDir::new().unwrap();
        for name in ["src", "mnt", "run", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("src/file"), "content").unwrap();
        World { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn places(&self) -> Places {
        Places::below(&self.path(""))
    }

    fn open(&self, dir: Option<&str>) -> Scratch {
        let dir = dir.map(|name| self.path(name));
        let config = ScratchConfig { dir, ..ScratchConfig::default() };
        Scratch::open(&config, &self.path("src"), &self.path("mnt"), &self.places()).unwrap()
    }

    /// Runs the program; gives its code, output and errors.
    fn run(&self, line: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmapfs"));
        command
            .args(line.split_whitespace())
            .current_dir(self.dir.path())
            .env("MMAPFS_RUN_DIR", self.path("run"))
            .env("MMAPFS_STATE_DIR", self.path("state"))
            .env_remove("MMAPFS_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = {
            let _alone = STARTING.lock().unwrap();
            command.spawn().unwrap()
        };
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> String {
        let (code, out, err) = self.run(line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    }

    #[track_caller]
    fn fails(&self, line: &str, code: i32, reason: &str) {
        let (found, out, err) = self.run(line);
        assert_eq!((found, out.as_str()), (code, ""), "{line}: {err}");
        assert!(err.starts_with("mmapfs: ") && err.contains(reason), "{line}: {err}");
        assert_eq!(err.lines().count(), 1, "{line}: {err}");
    }

    fn json(&self) -> Vec<Value> {
        let report: Value = serde_json::from_str(&self.succeeds("scratches --json")).unwrap();
        assert_eq!(report["report"], "scratches");
        report["scratches"].as_array().unwrap().clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that fails leaves no tmpfs behind.
        let places = self.places();
        for dir in mmapfs::layers::scratch::unused(&places) {
            let _ = mmapfs::layers::scratch::remove(&places, dir.as_os_str());
        }
    }
}

fn fuse() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        assert!(std::env::var_os("MMAPFS_REQUIRE_FUSE").is_none(), "/dev/fuse is missing");
        eprintln!("SKIPPED: /dev/fuse is missing");
    }
    there
}

#[test]
fn scratches_are_listed_for_people_and_for_programs() {
    let world = World::new();
    assert_eq!(world.succeeds("scratches"), "there are no scratches\n");
    assert_eq!(world.json().len(), 0);
    let kept = world.open(Some("kept"));
    let (id, place) = (kept.state().id.clone(), world.path("kept").display().to_string());
    fs::write(kept.layout().upper().join("file"), vec![1; 100_000]).unwrap();
    let text = world.succeeds("scratches");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("ID  "), "{text}");
    for word in [&id, &place, world.path("src").to_str().unwrap(), " KiB", " s  "] {
        assert!(lines[1].contains(word), "{text} has no {word}");
    }
    assert!(lines[1].contains(world.path("mnt").to_str().unwrap()), "{text}");
    let listed = &world.json()[0];
    assert_eq!(listed["id"], Value::from(id));
    assert_eq!(listed["place"], Value::from(place));
    assert_eq!(listed["mounted"], true);
    assert_eq!(listed["mountpoint"], world.path("mnt").to_str().unwrap());
    assert_eq!(listed["pid"], std::process::id());
    assert_eq!(listed["in_memory"], false);
    assert!(listed["bytes"].as_u64().unwrap() >= 100_000, "{listed}");
    assert!(listed["max_bytes"].is_null() && listed["trouble"].is_null(), "{listed}");
    close(kept);
    let listed = &world.json()[0];
    assert_eq!((&listed["mounted"], &listed["mountpoint"]), (&Value::from(false), &Value::Null));
}

#[test]
fn scratches_are_removed_by_id_and_by_directory_but_not_in_use() {
    let world = World::new();
    let one = world.open(Some("one"));
    let id = one.state().id.clone();
    close(one);
    let two = world.open(Some("two"));
    world.fails("scratches remove two", 1, "the scratch is in use: it is mounted on");
    assert!(world.path("two/upper").exists());
    world.fails(&format!("scratches remove nosuch {id}"), 1, "nosuch: there is no such scratch");
    assert!(!world.path("one").exists(), "the others are removed");
    close(two);
    world.succeeds("scratches remove ./two");
    assert_eq!(world.json().len(), 0);
    assert!(world.path("src/file").exists());
    world.fails("scratches remove src", 1, "it is not a scratch");
    world.fails("scratches remove", 2, "<ID|DIR>");
    world.fails("scratches remov", 2, "remov");
}

#[test]
fn what_is_gone_is_forgotten_and_what_may_not_be_mounted_is_shown() {
    let world = World::new();
    let gone = world.open(Some("gone"));
    let id = gone.state().id.clone();
    close(gone);
    close(world.open(Some("kept")));
    fs::remove_dir_all(world.path("gone")).unwrap();
    let left = world.json();
    assert_eq!(left.len(), 1, "what is on disk stays");
    assert_ne!(left[0]["id"], Value::from(id));
    fs::create_dir(world.path("point")).unwrap();
    close(world.open(Some("point/there")));
    fs::remove_dir_all(world.path("point/there")).unwrap();
    let text = world.succeeds("scratches");
    assert!(text.contains("its filesystem may not be mounted"), "{text}");
    world.succeeds("scratches remove --left-behind");
    assert_eq!(world.json().len(), 1);
    fs::write(world.path("kept/state.json"), "{").unwrap();
    let text = world.succeeds("scratches");
    assert!(text.contains("it is not the state of a scratch"), "{text}");
}

#[test]
fn a_scratch_in_memory_that_was_left_behind_is_found_and_removed() {
    let world = World::new();
    if !mmapfs::config::may_mount() {
        eprintln!("SKIPPED: it needs CAP_SYS_ADMIN");
        return;
    }
    let scratch = world.open(None);
    let dir = scratch.layout().dir().to_owned();
    scratch.keep();
    close(scratch);
    let listed = &world.json()[0];
    assert_eq!((&listed["in_memory"], &listed["mounted"]), (&Value::from(true), &false.into()));
    assert!(listed["max_bytes"].as_u64().unwrap() > 1 << 20, "{listed}");
    if fuse() {
        let line = format!("mount --check --json src mnt -o access=copy,scratch={}", dir.display());
        let plan: Value = serde_json::from_str(&world.succeeds(&line)).unwrap();
        assert_eq!(plan["scratch"]["action"], "opened again");
        assert_eq!(
            (&plan["scratch"]["kept"], &plan["scratch"]["in_memory"]),
            (&true.into(), &true.into())
        );
    }
    world.succeeds("scratches remove --left-behind");
    assert!(!dir.exists());
    assert_eq!(world.json().len(), 0);
}

#[test]
fn check_says_what_becomes_of_the_scratch_and_changes_nothing() {
    let world = World::new();
    if !fuse() {
        return;
    }
    let text =
        world.succeeds("mount --check src mnt -o access=copy,scratch=new,scratch_max=1G,share");
    let wanted = format!(
        "scratch      {} (made, kept) max=1G copy_up=128K share=on",
        world.path("new").display()
    );
    assert!(text.contains(&wanted), "{text}");
    assert!(!world.path("new").exists());
    let text = world.succeeds("mount --check src mnt -o access=write");
    assert!(!text.contains("scratch"), "{text}");
    if mmapfs::config::may_mount() {
        let text = world.succeeds("mount --check src mnt -o access=copy");
        assert!(text.contains("(made in memory, removed at unmount) max=50% "), "{text}");
    }

    let held = world.open(Some("held"));
    let state = fs::read(world.path("held/state.json")).unwrap();
    fs::create_dir(world.path("other")).unwrap();
    let check = |options: &str| format!("mount --check src mnt -o access=copy,{options}");
    world.fails(&check("scratch=held"), 1, "the scratch is in use");
    close(held);
    let again = world.succeeds(&check("scratch=held,copy_up=0"));
    assert!(again.contains("(opened again, kept) max=none copy_up=0"), "{again}");
    world.fails("mount --check other mnt -o access=copy,scratch=held", 1, "it is a scratch of");
    world.succeeds("mount --check other mnt -o access=copy,scratch=held,rebase");
    for (options, code, reason) in [
        ("scratch=src/in", 1, "it lies inside the source"),
        ("scratch=mnt/in", 1, "would hide it"),
        ("scratch=src/file", 1, "inside the source"),
        ("scratch=run/..", 1, "lies inside it"),
        ("scratch_max=0", 2, "larger than 0"),
        ("rebase", 2, "it goes with scratch="),
        ("open=none", 2, "files in it could be written"),
    ] {
        world.fails(&check(options), code, reason);
    }
    assert_eq!(fs::read(world.path("held/state.json")).unwrap(), state);
    fs::write(world.path("rules.toml"), "[[rule]]\nmatch = 'a'\naccess = 'copy'\n").unwrap();
    let options = "access=read,rules=rules.toml,scratch=held";
    let text = world.succeeds(&format!("mount --check src mnt -o {options}"));
    assert!(text.contains("opened again"), "a rule that copies needs the scratch: {text}");
}

#[test]
fn help_has_examples() {
    let world = World::new();
    let help = world.succeeds("scratches --help");
    assert!(help.contains("mmapfs scratches remove 5a3f") && help.contains("--json"), "{help}");
    assert!(world.succeeds("scratches remove --help").contains("--left-behind"));
    assert!(world.succeeds("completions bash").contains("--left-behind"));
    world.succeeds("man pages");
    let page = fs::read_to_string(world.path("pages/mmapfs-scratches.1")).unwrap();
    assert!(page.contains("EXAMPLES") && page.contains("remove"), "{page}");
    let page = fs::read_to_string(world.path("pages/mmapfs-scratches-remove.1")).unwrap();
    assert!(page.contains("left"), "{page}");
}

#[test]
fn a_scratch_whose_user_was_killed_is_free() {
    let world = World::new();
    close(world.open(Some("kept")));
    // As a daemon holds it: by a descriptor that goes with the process.
    let mut holder = Command::new("flock")
        .args(["--no-fork", "kept/lock", "sleep", "1000"])
        .current_dir(world.path(""))
        .spawn()
        .unwrap();
    let mounted = || world.json()[0]["mounted"] == true;
    while !mounted() {
        assert!(holder.try_wait().unwrap().is_none(), "flock(1) has ended");
    }
    world.fails("scratches remove kept", 1, "the scratch is in use");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(!mounted());
    world.succeeds("scratches remove kept");
}

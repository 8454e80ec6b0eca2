//! Names with any bytes in every control verb, by the command line and by the control file. A name
//! is a name: no part of it is ever taken for a command, and none reaches the terminal as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::*;
use mmapfs::advice::Advice;
use mmapfs::control::command::{Command as Verb, FlushMode, Line};
use mmapfs::control::report::Report;
use mmapfs::range::RangeSpec;
use serde_json::Value;

/// Names that an unquoted line, or a terminal, takes for something else.
const EVIL: [&[u8]; 14] = [
    b"x\nadvise destroy remove victim",
    b"\nadvise destroy remove victim\n",
    b"\"",
    b"\"x\"\nadvise destroy remove victim",
    b"\\",
    b"a\\nb",
    b" lead and trail ",
    b"0-1 of it",
    b"--",
    b"sync a",
    b"\x1b[2Jscreen\r\x7f",
    b"\xff\xfe\n",
    "reversed \u{202e}txt.\u{9b}".as_bytes(),
    b"ordinary",
];

const VICTIM: &[u8] = b"nothing that is done to other files changes this one";

/// Random names of up to 40 bytes, half of them of bytes that mean something somewhere.
fn random_names(count: usize) -> Vec<OsString> {
    let mut random = Random::from_environment();
    let name = |random: &mut Random| -> Vec<u8> {
        let len = 1 + random.below(40) as usize;
        let meaning = b"\n\"\\ \t-0193x/.\r\x1b";
        let byte = |random: &mut Random| match random.once_in(2) {
            true => random.pick(meaning),
            false => random.below(255) as u8 + 1,
        };
        let bytes = (0..len).map(|_| byte(random));
        bytes.map(|byte| if byte == b'/' { b'\n' } else { byte }).collect()
    };
    let names = (0..count).map(|_| name(&mut random));
    names.filter(|name| name != b"." && name != b"..").map(OsString::from_vec).collect()
}

/// Runs the program on paths, which all of it has to succeed for.
#[track_caller]
fn good(words: &[&str], paths: &[PathBuf]) -> Output {
    let output = Command::new(program()).args(words).args(paths).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
    output
}

/// Fails when something that a terminal obeys was printed.
#[track_caller]
fn assert_clean(printed: &[u8]) {
    let text = std::str::from_utf8(printed).expect("it is UTF-8");
    let harmful = |letter: char| letter != '\n' && mmapfs::shown::is_harmful(letter);
    assert!(!text.contains(harmful), "{text:?}");
}

/// Every verb that takes a path, on this one.
fn verbs(path: &Path) -> Vec<Verb> {
    let path = path.to_owned();
    let range = RangeSpec::All;
    vec![
        Verb::Status { path: Some(path.clone()) },
        Verb::Advise {
            advice: Advice::WillNeed,
            destroy: false,
            range: RangeSpec::Length { start: 0, len: 1 },
            path: path.clone(),
        },
        Verb::Flush { mode: FlushMode::Async, range, path: path.clone() },
        Verb::Lock { range, path: path.clone() },
        Verb::Unlock { range, path },
    ]
}

/// The path that a report is about.
fn path_of(report: &Value) -> PathBuf {
    match Report::from_json(&report.to_string()).unwrap() {
        Report::File(report) => report.path,
        Report::Advise(report) => report.path,
        Report::Flush(report) => report.path,
        Report::Lock(report) => report.path,
        report => panic!("{report:?}"),
    }
    .as_path()
    .to_owned()
}

/// Makes the files below the source, and gives their names: those above and random ones, in the
/// root and in a directory that is called like one of them.
fn populate(source: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = EVIL.iter().map(|name| OsStr::from_bytes(name).into()).collect();
    names.extend(random_names(30).into_iter().map(PathBuf::from));
    let dir = Path::new(OsStr::from_bytes(b"in\n\"here"));
    fs::create_dir(source.join(dir)).unwrap();
    names.extend(EVIL.iter().map(|name| dir.join(OsStr::from_bytes(name))));
    names.iter().for_each(|name| fs::write(source.join(name), b"some bytes").unwrap());
    fs::write(source.join("victim"), VICTIM).unwrap();
    names
}

fn on_any_names(options: &str, test: impl Fn(&mut MountedFs, &[PathBuf])) {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let source = dir.directory("source");
    open_to_all(&source);
    let names = populate(&source);
    let mut mounted = MountedFs::over(&source, options);
    test(&mut mounted, &names);
    mounted.assert_alive();
    for name in &names {
        assert_content(source.join(name), b"some bytes");
    }
    assert_content(source.join("victim"), VICTIM);
    assert_content(mounted.path().join("victim"), VICTIM);
}

#[test]
fn the_command_line_gives_any_name_to_every_verb() {
    for options in ["access=write", "access=copy", "access=read,ro,open=none"] {
        on_any_names(options, |mounted, names| {
            let paths: Vec<PathBuf> = names.iter().map(|name| mounted.path().join(name)).collect();
            for words in [
                &["status", "--json"][..],
                &["advise", "--json", "willneed"],
                &["flush", "--json"],
                &["lock", "--json"],
                &["unlock", "--json"],
            ] {
                let printed = good(words, &paths).stdout;
                assert_clean(&printed);
                let text = String::from_utf8(printed).unwrap();
                let answered: Vec<PathBuf> = text
                    .lines()
                    .map(|line| path_of(&serde_json::from_str(line).unwrap()))
                    .collect();
                assert_eq!(answered, names, "{options}: {words:?}");
            }
            assert_clean(&good(&["status"], &paths).stdout);
            assert_clean(&good(&["maps"], &[mounted.path().to_owned()]).stdout);
        });
    }
}

#[test]
fn the_control_file_takes_any_name_in_quotes() {
    on_any_names("access=write", |mounted, names| {
        let mut control = Control::open(mounted.path());
        for name in names {
            for command in verbs(name) {
                let line = Line { json: true, command }.to_bytes();
                assert_eq!(path_of(&control.ask(&line).json()), *name, "{line:?}");
            }
        }
    });
}

#[test]
fn a_name_that_was_printed_can_be_given_again() {
    on_any_names("access=write", |mounted, names| {
        let mut control = Control::open(mounted.path());
        for name in names {
            let line = Line { json: false, command: verbs(name).remove(0) }.to_bytes();
            let text = control.ask(&line).text();
            assert_clean(text.as_bytes());
            let printed = text.lines().next().unwrap().strip_prefix("path       ").unwrap();
            let again = control.ask(format!("json flush async {printed}")).json();
            assert_eq!(path_of(&again), *name, "{printed}");
        }
    });
}

#[test]
fn a_failure_names_its_path_in_one_line() {
    on_any_names("access=write", |mounted, _| {
        for name in EVIL {
            let missing = Path::new(OsStr::from_bytes(name)).join("missing");
            let command = Verb::Status { path: Some(missing.clone()) };
            let line = Line { json: false, command: command.clone() }.to_bytes();
            let text = Control::open(mounted.path()).ask(&line).text;
            assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text:?}");
            assert_clean(text.as_bytes());
            let line = Line { json: true, command }.to_bytes();
            let text = Control::open(mounted.path()).ask(&line).text;
            let Ok(Report::Error(report)) = Report::from_json(&text) else { panic!("{text}") };
            assert_eq!(report.path.unwrap().as_path(), missing);
            for path in [mounted.path().join(&missing), mounted.path().join("none").join(&missing)]
            {
                let output = Command::new(program()).arg("status").arg(path).output().unwrap();
                let error = String::from_utf8(output.stderr).unwrap();
                assert!(error.starts_with("mmapfs: ") && error.lines().count() == 1, "{error:?}");
                assert_clean(error.as_bytes());
            }
        }
    });
}

#[test]
fn what_is_not_one_command_is_refused() {
    on_any_names("access=write", |mounted, _| {
        let lines: [&[u8]; 4] = [
            b"advise willneed \"victim\" victim",
            b"advise willneed \"victim",
            b"status \"vic\\qtim\"",
            b"flush \"\"",
        ];
        for line in lines {
            let error = ask(mounted.path(), line).fails_with(rustix::io::Errno::INVAL);
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    });
}

#[test]
fn a_single_file_of_any_name_can_be_served() {
    if !require_fuse() {
        return;
    }
    for name in EVIL {
        let dir = TestDir::new();
        let source = dir.path().join(OsStr::from_bytes(name));
        fs::write(&source, VICTIM).unwrap();
        // Other programs read the table of mounts as text.
        let mounted = MountedFs::over(&source, "access=write,fsname=any");
        let path = mounted.path().join(OsStr::from_bytes(name));
        for words in [&["status", "--json"][..], &["flush", "--json"], &["lock", "--json"]] {
            let printed = good(words, std::slice::from_ref(&path)).stdout;
            let report = serde_json::from_slice(&printed).unwrap();
            assert_eq!(path_of(&report).as_os_str(), OsStr::from_bytes(name));
        }
        assert_clean(&good(&["status"], &[mounted.path().to_owned()]).stdout);
        assert_content(&source, VICTIM);
    }
}

#[test]
fn a_rule_can_match_any_name() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let source = dir.directory("source");
    open_to_all(&source);
    fs::create_dir(source.join("two\nlines")).unwrap();
    let matched: [&[u8]; 5] =
        [b"two\nlines/file", b"\"quoted\"", b"\x1b", b"bytes \xff\xfe", "\u{202e}".as_bytes()];
    for name in matched {
        fs::write(source.join(OsStr::from_bytes(name)), b"x").unwrap();
    }
    fs::write(source.join("other"), b"x").unwrap();
    let rules = dir.path().join("rules\n.toml");
    let patterns =
        [r"**/file", r#"two\nlines/f*"#, r#"\"quoted\""#, r"\u001b", "bytes ??", r"\u202e"];
    let text = patterns.map(|glob| format!("[[rule]]\nmatch = \"{glob}\"\nadvice = \"random\"\n"));
    fs::write(&rules, text.concat()).unwrap();
    let mounted = MountedFs::over(&source, &format!("access=read,rules={}", rules.display()));
    let advice = |name: &[u8]| {
        let printed = good(&["status", "--json"], &[mounted.path().join(OsStr::from_bytes(name))]);
        let report: Value = serde_json::from_slice(&printed.stdout).unwrap();
        report["advice"].as_str().unwrap().to_owned()
    };
    for name in matched {
        assert_eq!(advice(name), "random", "{name:?}");
    }
    assert_eq!(advice(b"other"), "normal");
}

/// A directory whose path has something of all that a terminal obeys, and what its name is.
fn evil_directory(dir: &Path, which: &str) -> PathBuf {
    let path = dir.join(format!("{which}\x1b[2J\n\u{202e}\u{9b}"));
    fs::create_dir(&path).unwrap();
    open_to_all(&path);
    path
}

#[test]
fn no_command_prints_what_a_terminal_obeys() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let (source, scratch) =
        (evil_directory(dir.path(), "base"), dir.path().join("s\x1b[2J\n\u{202e}"));
    let (state, missing) = (evil_directory(dir.path(), "state"), dir.path().join("\x1b\n\u{202e}"));
    fs::write(source.join("a\x1b\u{202e}"), b"x").unwrap();
    let options = format!("access=copy,fsname=any,scratch={}", scratch.to_str().unwrap());
    let mounted = MountedFs::over_with(&source, &options, &[("MMAPFS_STATE_DIR", &state)]);
    let mnt = mounted.path();
    fs::write(mnt.join("a\x1b\u{202e}"), b"y").unwrap();
    let open = fs::File::open(mnt.join("a\x1b\u{202e}")).unwrap();
    let run = |words: &[&OsStr]| {
        let mut command = Command::new(program());
        let output = command.args(words).env("MMAPFS_STATE_DIR", &state).output().unwrap();
        let printed = [&output.stdout[..], &output.stderr].concat();
        assert!(!printed.is_empty(), "{words:?}");
        assert_clean(&printed);
        String::from_utf8(printed).unwrap()
    };
    let word = |path: &Path| path.as_os_str().to_owned();
    let (mnt, source, scratch, missing) =
        (word(mnt), word(&source), word(&scratch), word(&missing));
    for json in [true, false] {
        let on = |words: &[&str], rest: &[&OsStr]| {
            let json = json.then_some("--json").into_iter();
            let words = words.iter().copied().chain(json).map(OsStr::new);
            run(&words.chain(rest.iter().copied()).collect::<Vec<_>>())
        };
        let status = on(&["status"], &[&mnt]);
        assert!(status.contains(if json { "\\u202e" } else { "\\xe2\\x80\\xae" }), "{status}");
        let listed = on(&["scratches"], &[]);
        assert!(listed.contains(if json { "\\u001b[2J\\n" } else { "\\x1b[2J\\n" }), "{listed}");
        let kept = format!("access=copy,scratch={}", missing.to_str().unwrap());
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        let elsewhere = elsewhere.as_os_str();
        on(&["mount", "--check", "-o", &kept], &[&source, elsewhere]);
        on(&["doctor"], &[&source]);
        on(&["status"], &[&missing]);
        on(&["flush"], &[&source]);
        on(&["maps"], &[&mnt]);
        // It is in use: the refusal names the mount point, and the error the scratch.
        let again = format!("access=copy,scratch={}", scratch.to_str().unwrap());
        let refused = run(&["mount", "-o", &again]
            .map(OsStr::new)
            .into_iter()
            .chain([&*source, elsewhere])
            .collect::<Vec<_>>());
        assert!(refused.contains("\\xe2\\x80\\xae"), "{refused}");
        assert!(refused.lines().all(|line| line.starts_with("mmapfs: ")), "{refused}");
    }
    for words in [["umount"], ["reload"], ["frob\x1b\u{202e}nicate"]] {
        run(&[OsStr::new(words[0]), &missing]);
    }
    run(&["mount", "-o", "frob\x1b\u{202e}=1"]
        .map(OsStr::new)
        .into_iter()
        .chain([&*source, &mnt])
        .collect::<Vec<_>>());
    run(&["scratches", "remove"]
        .map(OsStr::new)
        .into_iter()
        .chain([&*missing])
        .collect::<Vec<_>>());
    drop(open);
    let log = mounted.log();
    assert!(log.contains("is served on"), "{log}");
    assert_clean(log.as_bytes());
    mounted.unmount();
}

#[test]
fn what_a_stranger_planted_in_a_scratch_is_listed_without_effect() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let (source, scratch) = (dir.directory("base"), dir.path().join("scratch"));
    let (run, state) = (dir.directory("run"), dir.directory("state"));
    // No scratch of another test is listed there.
    let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
    let options = format!("access=copy,scratch={}", scratch.display());
    MountedFs::over_with(&source, &options, &places).unmount();
    let file = scratch.join("state.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    text["base"]["path"] = "/base\x1b]0;title\x07\n\u{202e}".into();
    text["id"] = "\x1b[2J\n\u{202e}abcdef".into();
    // A state of before has none, and is believed.
    text.as_object_mut().unwrap().remove("checksum").unwrap();
    fs::write(&file, text.to_string()).unwrap();
    for words in [&["scratches"][..], &["scratches", "--json"]] {
        let output = Command::new(program()).args(words).envs(places).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_clean(&output.stdout);
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        assert_eq!(lines, if words.len() == 1 { 2 } else { 1 }, "{output:?}");
    }
}

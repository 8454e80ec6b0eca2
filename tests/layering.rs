//! The shape of the source: imports point down, unsafe code and foreign crates stay where they
//! belong, files stay small and ASCII.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate: each may import those after it, and itself.
const LAYERS: [&str; 20] = [
    "cli", "client", "daemon", "doctor", "mount", "fuse", "control", "watch", "layers", "volume",
    "tree", "mapping", "config", "sys", "flags", "advice", "range", "units", "error", "shown",
];

/// The longest file.
const MOST_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory of the project, sorted.
fn files_below(name: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![root().join(name)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn sources_below(name: &str) -> Vec<PathBuf> {
    let mut files = files_below(name);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// The path inside of the project.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The lines of code of a file with their numbers, without comments and strings.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().enumerate().map(|(at, line)| (at + 1, without_text(line))).collect()
}

/// A line up to its comment, with its strings emptied. A string over several lines is cut at each
/// end of line, which is good enough: it has an odd number of quotes on its first line.
fn without_text(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (quoted, character) {
            (false, '/') if characters.peek() == Some(&'/') => break,
            (true, '\\') => drop(characters.next()),
            (_, '"') => quoted = !quoted,
            (false, other) => code.push(other),
            (true, _) => {}
        }
    }
    code
}

/// The layer of a file in src, by its place; None for the root of the crate and the program.
fn layer_of(path: &Path) -> Option<usize> {
    let below = path.strip_prefix(root().join("src")).unwrap();
    let first = Path::new(below.iter().next().unwrap()).file_stem().unwrap().to_str().unwrap();
    LAYERS.iter().position(|layer| *layer == first)
}

/// The modules of the crate that a line names by `crate::`.
fn modules_named(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for after in line.split("crate::").skip(1) {
        let list = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(list),
            None => after.split(',').next().unwrap_or(after),
        };
        for name in list.split(',') {
            let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
            names.push(name.trim().chars().take_while(|character| is_part(*character)).collect());
        }
    }
    names
}

/// The lines of code of src that `wrong` finds fault with.
fn faults(wrong: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for path in sources_below("src") {
        for (number, line) in code_lines(&path) {
            if wrong(&path, &line) {
                faults.push(format!("{}:{number}: {}", shown(&path), line.trim()));
            }
        }
    }
    faults
}

#[track_caller]
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn is_in(path: &Path, places: &[&str]) -> bool {
    let below = shown(path);
    places.iter().any(|place| below.starts_with(place))
}

/// True when `word` stands in the line as a word of its own, followed by `then`.
fn has_word(line: &str, word: &str, then: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let free = |character: char| !(character.is_ascii_alphanumeric() || character == '_');
        before.is_none_or(free) && line[at + word.len()..].starts_with(then)
    })
}

#[test]
fn every_module_has_its_layer() {
    for path in sources_below("src") {
        let is_root = ["src/lib.rs", "src/main.rs"].contains(&shown(&path).as_str());
        assert!(is_root || layer_of(&path).is_some(), "{} is of no layer", shown(&path));
    }
}

#[test]
fn imports_point_down() {
    let points_up = |path: &Path, line: &str| {
        let Some(from) = layer_of(path) else { return false };
        modules_named(line)
            .iter()
            .any(|name| LAYERS.iter().position(|layer| layer == name).is_some_and(|to| to < from))
    };
    assert_none(&faults(points_up));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    let is_unsafe = |line: &str| {
        let starts = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code)"];
        starts.iter().any(|start| line.contains(start))
    };
    assert_none(&faults(|path, line| !is_in(path, &["src/sys"]) && is_unsafe(line)));
    for path in sources_below("tests") {
        let allowed =
            is_in(&path, &["tests/common/mapped.rs", "tests/common/raw.rs", "tests/layering.rs"]);
        let found = code_lines(&path).iter().any(|(_, line)| is_unsafe(line));
        assert!(allowed || !found, "{} has unsafe code", shown(&path));
    }
}

#[test]
fn fuser_is_known_to_fuse_only() {
    let names_fuser =
        |line: &str| has_word(line, "fuser", "::") || line.trim_start().starts_with("use fuser");
    assert_none(&faults(|path, line| !is_in(path, &["src/fuse"]) && names_fuser(line)));
}

#[test]
fn mappings_and_calls_of_libc_are_made_in_sys_only() {
    let calls_libc = |line: &str| {
        line.match_indices("libc::").any(|(at, found)| {
            let rest = &line[at + found.len()..];
            let name = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
            rest.starts_with(|c: char| c.is_ascii_lowercase()) && rest[name..].starts_with('(')
        })
    };
    assert_none(&faults(|path, line| {
        !is_in(path, &["src/sys"]) && (calls_libc(line) || has_word(line, "memmap2", "::"))
    }));
}

#[test]
fn files_are_small() {
    let mut long = Vec::new();
    for path in ["src", "tests", "examples"].into_iter().flat_map(sources_below) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > MOST_LINES {
            long.push(format!("{}: {lines} lines, at most {MOST_LINES}", shown(&path)));
        }
    }
    assert_none(&long);
}

#[test]
fn text_is_ascii() {
    let places = [
        "src",
        "tests",
        "examples",
        "scripts",
        "docs",
        "systemd",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    ];
    let mut wrong = Vec::new();
    for path in places.into_iter().flat_map(files_below) {
        let picture = path.extension().is_some_and(|extension| extension == "png");
        if !picture && !fs::read(&path).unwrap().is_ascii() {
            wrong.push(format!("{} is not ASCII", shown(&path)));
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_lines_that_the_rules_look_at_are_understood() {
    assert_eq!(without_text(r#"call("a // \" b"); // crate::fuse"#), "call(); ");
    assert_eq!(modules_named("use crate::{sys, config::X};"), ["sys", "config"]);
    assert_eq!(modules_named("crate::sys::f(crate::volume::g)"), ["sys", "volume"]);
    assert!(has_word("use fuser::Session", "fuser", "::"));
    assert!(!has_word("use my_fuser::Session", "fuser", "::"));
}

#[test]
fn names_are_shown_without_what_a_terminal_obeys() {
    // What tests print is for whoever runs them.
    let is_test = |path: &PathBuf| shown(path).contains("tests");
    for path in sources_below("src").into_iter().filter(|path| !is_test(path)) {
        for (line, code) in code_lines(&path) {
            let place = format!("{}:{line}", shown(&path));
            assert!(
                !code.contains(".display()"),
                "{place}: use `.shown()` of `crate::shown::Show`"
            );
        }
    }
}

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn parsed(line: &str) -> Command {
    let Line { json, command } = Line::parse(line.as_bytes()).unwrap();
    assert!(!json, "{line}");
    command
}

fn refusal(line: &str) -> (ErrorKind, String) {
    let error = Line::parse(line.as_bytes()).unwrap_err();
    (error.kind, error.message)
}

fn advise(advice: Advice, destroy: bool, range: RangeSpec, path: &str) -> Command {
    Command::Advise { advice, destroy, range, path: path.into() }
}

fn flush(mode: FlushMode, range: RangeSpec, path: &str) -> Command {
    Command::Flush { mode, range, path: path.into() }
}

const MIB: RangeSpec = RangeSpec::Span { start: 0, end: 1 << 20 };

#[test]
fn every_verb_is_parsed() {
    use Advice::{Remove, WillNeed};
    let lock = |range, path: &str| Command::Lock { range, path: path.into() };
    let table = [
        ("advise willneed data/a.bin", advise(WillNeed, false, RangeSpec::All, "data/a.bin")),
        ("advise MADV_WILLNEED 0-1M a b", advise(WillNeed, false, MIB, "a b")),
        ("advise destroy remove 0-1M a", advise(Remove, true, MIB, "a")),
        ("advise remove a", advise(Remove, false, RangeSpec::All, "a")),
        ("advise destroy willneed a", advise(WillNeed, true, RangeSpec::All, "a")),
        ("flush a", flush(FlushMode::Sync, RangeSpec::All, "a")),
        ("flush async 0-1M a", flush(FlushMode::Async, MIB, "a")),
        ("flush 0-1M a", flush(FlushMode::Sync, MIB, "a")),
        ("flush invalidate a", flush(FlushMode::Invalidate, RangeSpec::All, "a")),
        ("status", Command::Status { path: None }),
        ("status  \t", Command::Status { path: None }),
        ("status .", Command::Status { path: Some(PathBuf::new()) }),
        ("status /", Command::Status { path: Some(PathBuf::new()) }),
        ("status a b", Command::Status { path: Some("a b".into()) }),
        ("diff", Command::Diff { ranges: false, expand: false, path: None }),
        (
            "diff ranges expand a b",
            Command::Diff { ranges: true, expand: true, path: Some("a b".into()) },
        ),
        ("diff expand", Command::Diff { ranges: false, expand: true, path: None }),
        (
            "diff /ranges",
            Command::Diff { ranges: false, expand: false, path: Some("ranges".into()) },
        ),
        ("maps", Command::Maps),
        ("lock 64K- a", lock(RangeSpec::From { start: 65_536 }, "a")),
        ("unlock a", Command::Unlock { range: RangeSpec::All, path: "a".into() }),
        ("reload", Command::Reload),
        ("help", Command::Help { verb: None }),
        ("help advise", Command::Help { verb: Some(Verb::Advise) }),
        ("version\n", Command::Version),
        ("log DEBUG", Command::Log { level: log::LevelFilter::Debug }),
        (" \t maps ", Command::Maps),
    ];
    for (line, command) in table {
        assert_eq!(parsed(line), command, "{line}");
    }
}

#[test]
fn json_before_a_verb_asks_for_json() {
    let line = Line::parse(b"json status json").unwrap();
    assert_eq!(line, Line { json: true, command: parsed("status json") });
    for line in ["json maps", " json\tmaps\n", "json", "json\n", "json nonsense"] {
        assert!(Line::wants_json(line.as_bytes()), "{line:?}");
    }
    for line in ["", "maps", "jsonmaps", "status json"] {
        assert!(!Line::wants_json(line.as_bytes()), "{line:?}");
    }
}

#[test]
fn a_path_that_looks_like_another_word_is_a_path_where_it_says_so() {
    let all = RangeSpec::All;
    let table = [
        ("flush 0-1M", flush(FlushMode::Sync, all, "0-1M")),
        ("flush -- 0-1M b", flush(FlushMode::Sync, all, "0-1M b")),
        ("flush /0-1M b", flush(FlushMode::Sync, all, "0-1M b")),
        ("flush 0-1M -- 0-2M b", flush(FlushMode::Sync, MIB, "0-2M b")),
        ("flush 9-1 b", flush(FlushMode::Sync, all, "9-1 b")),
        ("flush 0-1Q b", flush(FlushMode::Sync, all, "0-1Q b")),
        ("flush -- sync", flush(FlushMode::Sync, all, "sync")),
        ("flush /async", flush(FlushMode::Sync, all, "async")),
        ("flush sync async", flush(FlushMode::Sync, all, "async")),
        ("flush -- --", flush(FlushMode::Sync, all, "--")),
        ("flush --x", flush(FlushMode::Sync, all, "--x")),
        ("flush /--", flush(FlushMode::Sync, all, "--")),
        ("flush -", flush(FlushMode::Sync, all, "-")),
        ("flush - a", flush(FlushMode::Sync, all, "a")),
        ("flush / a", flush(FlushMode::Sync, all, " a")),
        ("flush a ", flush(FlushMode::Sync, all, "a ")),
        ("advise cold destroy", advise(Advice::Cold, false, all, "destroy")),
    ];
    for (line, command) in table {
        assert_eq!(parsed(line), command, "{line}");
    }
}

#[test]
fn a_path_in_quotes_may_hold_any_byte() {
    let all = RangeSpec::All;
    let table = [
        (r#"flush "a b""#, flush(FlushMode::Sync, all, "a b")),
        (r#"flush "a\nb\" \\c" "#, flush(FlushMode::Sync, all, "a\nb\" \\c")),
        (r#"flush async 0-1M "\x0a\012\u000a""#, flush(FlushMode::Async, MIB, "\n\n\n")),
        (r#"flush "0-1M b""#, flush(FlushMode::Sync, all, "0-1M b")),
        (r#"flush "sync" "#, flush(FlushMode::Sync, all, "sync")),
        (r#"flush -- "--""#, flush(FlushMode::Sync, all, "--")),
        (r#"flush "/ a//b/""#, flush(FlushMode::Sync, all, " a/b")),
        (r#"flush /"a""#, flush(FlushMode::Sync, all, "\"a\"")),
        (r#"flush a"b\n"#, flush(FlushMode::Sync, all, "a\"b\\n")),
    ];
    for (line, command) in table {
        assert_eq!(parsed(line), command, "{line}");
    }
    let Command::Status { path: Some(path) } = parsed(r#"status "\xff\377""#) else { panic!() };
    assert_eq!(path.as_os_str().as_bytes(), b"\xff\xff");
}

#[test]
fn a_path_in_quotes_with_a_mistake_is_refused() {
    let table = [
        (r#"status "a" b"#, "something follows its closing quote"),
        (r#"status "a"b"#, "something follows its closing quote"),
        (r#"status "a" "b""#, "something follows its closing quote"),
        (r#"status "a"#, "its closing quote is missing"),
        (r#"status ""#, "its closing quote is missing"),
        (r#"status "a\q""#, "begins an escape"),
        (r#"status """#, "it is empty"),
        (r#"status "a\0001""#, "a NUL"),
        (r#"status "a/../b""#, "cannot hold `..`"),
    ];
    for (line, why) in table {
        let (kind, message) = refusal(line);
        assert!(kind == ErrorKind::Argument && message.contains(why), "{line}: {message}");
    }
}

#[test]
fn a_path_is_freed_of_what_means_nothing() {
    for line in ["status a/b", "status //a//b", "status ./a/./b/", "status /./a/b/."] {
        let Command::Status { path: Some(path) } = parsed(line) else { panic!("{line}") };
        assert_eq!(path.as_os_str(), "a/b", "{line}");
    }
}

#[test]
fn a_mistake_is_answered_with_what_is_known() {
    use ErrorKind::{Argument, Unknown};
    let advise_usage = "usage: advise [destroy] ADVICE [RANGE] PATH";
    let missing = |what: &str| format!("advise: {what} is missing; {advise_usage}");
    let no_path = missing("PATH").replace("is missing", "is missing (`.` is the root)");
    let table = [
        ("", Argument, "there is no command: `help` lists them".to_owned()),
        ("json", Argument, "there is no command: `help` lists them".to_owned()),
        ("advice a", Unknown, "there is no verb `advice`: did you mean `advise`?".to_owned()),
        ("MAPS", Unknown, "there is no verb `MAPS`: did you mean `maps`?".to_owned()),
        ("frobnicate", Unknown, "there is no verb `frobnicate`: `help` lists the verbs".to_owned()),
        (
            "advise wilneed a",
            Unknown,
            "there is no advice `wilneed`: did you mean `willneed`?".to_owned(),
        ),
        ("help me", Unknown, "there is no verb `me`: `help` lists the verbs".to_owned()),
        ("advise", Argument, missing("ADVICE")),
        ("advise destroy", Argument, missing("ADVICE")),
        ("advise cold", Argument, no_path.clone()),
        ("advise cold --", Argument, no_path),
        ("maps all", Argument, "maps: `all` is one word too many; usage: maps".to_owned()),
        ("help maps x", Argument, "help: `x` is one word too many; usage: help [VERB]".to_owned()),
        (
            "log loud",
            Argument,
            "there is no log level `loud`: give off, error, warn, info, debug or trace".to_owned(),
        ),
        ("log", Argument, "log: LEVEL is missing; usage: log LEVEL".to_owned()),
        (
            "status a/../b",
            Argument,
            "`a/../b` is not taken: a path here cannot hold `..`".to_owned(),
        ),
        ("status a\0b", Argument, "`a\\0b` is no path: it holds a NUL".to_owned()),
        ("maps\nmaps", Argument, "a line cannot hold a newline".to_owned()),
    ];
    for (line, kind, message) in table {
        assert_eq!(refusal(line), (kind, message), "{line}");
    }
}

#[test]
fn a_line_that_is_too_long_is_refused() {
    let line = |len: usize| format!("status {}", "x".repeat(len - "status ".len()));
    assert!(Line::parse(line(LONGEST_LINE).as_bytes()).is_ok());
    let (kind, message) = refusal(&line(LONGEST_LINE + 1));
    assert_eq!(kind, ErrorKind::Argument);
    assert_eq!(message, "the line has 65537 bytes: at most 65536 are taken");
}

#[test]
fn every_kind_of_error_has_its_errno() {
    let table = [
        (ErrorKind::Unknown, libc::EINVAL),
        (ErrorKind::Argument, libc::EINVAL),
        (ErrorKind::NotFound, libc::ENOENT),
        (ErrorKind::NotAllowed, libc::EPERM),
        (ErrorKind::OutOfRange, libc::ERANGE),
        (ErrorKind::NotSupported, libc::ENOTSUP),
        (ErrorKind::Io(libc::ENOSPC), libc::ENOSPC),
    ];
    for (kind, errno) in table {
        assert_eq!(CommandError::new(kind, "x").errno(), errno, "{kind:?}");
    }
    let outside = RangeSpec::UpTo { end: 2 }.resolve(1).unwrap_err();
    assert_eq!(CommandError::from(outside).errno(), libc::ERANGE);
    let malformed = "x".parse::<RangeSpec>().unwrap_err();
    assert_eq!(CommandError::from(malformed).errno(), libc::EINVAL);
}

#[test]
fn the_help_explains_every_verb_and_every_advice() {
    let overview = help::text(None);
    for verb in Verb::ALL.iter().copied() {
        assert!(overview.contains(verb.usage()), "{verb}");
        let text = help::text(Some(verb));
        assert!(text.starts_with(verb.usage()) && text.contains(verb.example()), "{verb}");
        assert!(verb.usage().starts_with(verb.name()) && verb.doc().ends_with('.'), "{verb}");
        assert_eq!(parsed(verb.example()).verb(), verb);
    }
    let advice = help::text(Some(Verb::Advise));
    for known in Advice::ALL {
        assert!(advice.contains(&format!("\n  {known:15}  {}", known.summary())), "{known}");
    }
    for line in overview.lines().chain(advice.lines()) {
        assert!(line.chars().count() <= 110 && line.is_ascii(), "{line}");
    }
}

/// Words that a careless parser takes for something else.
const TRAPS: [&str; 20] = [
    "0-1M", "4K+8K", "-9", "1G-", "-", "--", "--json", "json", "destroy", "sync", "advise", "all",
    " ", "\t", "\"", "\\", "\\n", "\n", "\"a\"", "\nmaps",
];

/// A name of a directory entry: any bytes, traps among them.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|b| if matches!(b, 0 | b'/') { b'\n' } else { b });
    let trap = proptest::sample::select(&TRAPS[..]).prop_map(|trap| trap.as_bytes().to_vec());
    let joined = (trap.clone(), "[ \t]{0,2}", trap.clone())
        .prop_map(|(a, blanks, b)| [a, blanks.into_bytes(), b].concat());
    let name = prop_oneof![
        proptest::collection::vec(byte, 1..20),
        trap,
        joined,
        "[a-z .]{1,9}".prop_map(String::into_bytes)
    ];
    name.prop_filter("a name in a tree", |name| !matches!(&name[..], b"." | b".."))
}

/// A path as commands hold it; the empty one is the root.
fn any_path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec(any_name(), 0..4)
        .prop_map(|names| names.into_iter().map(OsString::from_vec).collect())
}

fn any_range() -> impl Strategy<Value = RangeSpec> {
    prop_oneof![
        Just(RangeSpec::All),
        (any::<u64>(), any::<u64>())
            .prop_map(|(a, b)| RangeSpec::Span { start: a.min(b), end: a.max(b) }),
        (any::<u64>(), 0u64..1 << 40).prop_map(|(start, len)| RangeSpec::Length { start, len }),
        (0u64..1 << 50).prop_map(|end| RangeSpec::UpTo { end: end << 10 }),
        any::<u64>().prop_map(|start| RangeSpec::From { start }),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let level = proptest::sample::select(log::LevelFilter::iter().collect::<Vec<_>>());
    let verb = proptest::option::of(proptest::sample::select(Verb::ALL));
    prop_oneof![
        4 => (proptest::sample::select(Advice::ALL), any::<bool>(), any_range(), any_path())
            .prop_map(|(advice, destroy, range, path)| {
                Command::Advise { advice, destroy, range, path }
            }),
        4 => (proptest::sample::select(FlushMode::ALL), any_range(), any_path())
            .prop_map(|(mode, range, path)| Command::Flush { mode, range, path }),
        2 => proptest::option::of(any_path()).prop_map(|path| Command::Status { path }),
        2 => (any_range(), any_path()).prop_map(|(range, path)| Command::Lock { range, path }),
        2 => (any_range(), any_path()).prop_map(|(range, path)| Command::Unlock { range, path }),
        2 => (any::<bool>(), any::<bool>(), proptest::option::of(any_path()))
            .prop_map(|(ranges, expand, path)| Command::Diff { ranges, expand, path }),
        1 => Just(Command::Maps),
        1 => Just(Command::Reload),
        1 => Just(Command::Version),
        1 => verb.prop_map(|verb| Command::Help { verb }),
        1 => level.prop_map(|level| Command::Log { level }),
    ]
}

proptest! {
    #[test]
    fn a_printed_line_parses_back(json: bool, command in any_command()) {
        let line = Line { json, command };
        let bytes = line.to_bytes();
        prop_assert!(!bytes.contains(&b'\n'));
        prop_assert_eq!(Line::parse(&bytes), Ok(line.clone()));
        prop_assert_eq!(Line::parse(&[&bytes[..], b"\n"].concat()), Ok(line.clone()));
        // The words of a path are compared too: `Path` takes `a//b` and `a/b` for equal.
        let path = Line::parse(&bytes).unwrap().command.path().map(|p| p.as_os_str().to_owned());
        prop_assert_eq!(path, line.command.path().map(|p| p.as_os_str().to_owned()));
    }

    #[test]
    fn a_printed_path_is_taken_by_every_verb(path in any_path()) {
        let word = PathWord(&path).to_string();
        prop_assert!(!word.contains(crate::shown::is_harmful), "{word:?}");
        for verb in ["status", "flush", "flush async", "lock", "unlock", "advise cold"] {
            let line = format!("{verb} {word}");
            let taken = Line::parse(line.as_bytes()).unwrap().command;
            prop_assert_eq!(taken.range().unwrap_or(RangeSpec::All), RangeSpec::All, "{}", line);
            let taken = taken.path().map(|path| path.as_os_str().to_owned());
            prop_assert_eq!(taken, Some(path.as_os_str().to_owned()), "{}", line);
        }
    }

    #[test]
    fn a_path_is_given_by_two_dashes_too(
        path in any_path().prop_filter("a first word", |path| {
            let bytes = path.as_os_str().as_bytes();
            !matches!(bytes, [] | [b' ' | b'\t' | b'"', ..]) && !bytes.contains(&b'\n')
        }),
    ) {
        let bytes = path.as_os_str().as_bytes();
        let line = [b"advise cold -- ", bytes].concat();
        let command = Command::Advise {
            advice: Advice::Cold,
            destroy: false,
            range: RangeSpec::All,
            path,
        };
        prop_assert_eq!(Line::parse(&line).map(|line| line.command), Ok(command));
    }

    #[test]
    fn no_bytes_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_any(&line)?;
    }

    #[test]
    fn no_words_panic(words in proptest::collection::vec(
        prop_oneof![
            proptest::sample::select(&TRAPS[..]).prop_map(str::to_owned),
            proptest::sample::select(Verb::ALL).prop_map(|verb| verb.to_string()),
            proptest::sample::select(Advice::ALL).prop_map(|advice| advice.to_string()),
            "[-+0-9KMG/.]{0,8}",
        ],
        0..8,
    )) {
        check_any(words.join(" ").as_bytes())?;
    }
}

/// The rule for every line: a line that is taken prints to one that means the same, unless that is
/// too long, and a line that is refused is refused in one line.
fn check_any(line: &[u8]) -> Result<(), TestCaseError> {
    match Line::parse(line) {
        Ok(line) => {
            let printed = line.to_bytes();
            prop_assert!(printed.len() > LONGEST_LINE || Line::parse(&printed) == Ok(line));
        }
        Err(error) => prop_assert!(!error.message.contains('\n') && error.message.len() < 1000),
    }
    Ok(())
}

#[test]
fn the_longest_lines_are_answered_at_once() {
    let start = Instant::now();
    for word in
        ["a", " ", "\t ", "-", "--", "-- ", "0-", "/", "./", "a/", "\0", "\u{e9}", "9", "1-1 "]
    {
        for verb in ["", "json ", "advise ", "advise cold ", "flush ", "status ", "help ", "log "] {
            let mut line = format!("{verb}{}", word.repeat(LONGEST_LINE)).into_bytes();
            line.truncate(LONGEST_LINE);
            check_any(&line).unwrap();
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

use super::*;
use crate::cli::args::MountArgs;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn invocation(line: &str) -> Result<Invocation, Failure> {
    parse(&words(line))
}

fn mount(line: &str) -> MountArgs {
    match invocation(line) {
        Ok(Invocation::Verb(Verb::Mount(args))) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn helper(line: &str) -> HelperArgs {
    match invocation(line) {
        Ok(Invocation::Helper(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    let failure = invocation(line).unwrap_err();
    assert_eq!(failure.exit_code(), 2, "{line}");
    let line = failure.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn a_mount_can_be_written_with_and_without_its_command() {
    for line in [
        "mmapfs mount /srv /mnt -o ro,access=read -o noatime -f",
        "mmapfs /srv /mnt -f -o ro,access=read -onoatime",
        "mmapfs -o ro,access=read -f -o noatime /srv /mnt",
        "mmapfs -f /srv -o ro,access=read /mnt -onoatime",
    ] {
        let args = mount(line);
        assert_eq!(
            (args.source.as_path(), args.mountpoint.as_path()),
            (Path::new("/srv"), Path::new("/mnt"))
        );
        assert_eq!(args.options, words("ro,access=read noatime"), "{line}");
        assert!(args.foreground && !args.check, "{line}");
    }
}

#[test]
fn a_word_is_a_source_if_it_has_a_slash_or_exists() {
    assert_eq!(mount("mmapfs ./mount /mnt").source, Path::new("./mount"));
    assert_eq!(mount("mmapfs missing/dir mnt").source, Path::new("missing/dir"));
    // The tests run in the crate's directory.
    assert_eq!(mount("mmapfs src mnt").source, Path::new("src"));
    assert_eq!(mount("mmapfs . mnt").source, Path::new("."));
}

#[test]
fn a_word_that_is_neither_command_nor_source_names_the_nearest_command() {
    for (word, near) in [
        ("advse", "advise"),
        ("unmount", "umount"),
        ("mout", "mount"),
        ("stat", "status"),
        ("falush", "flush"),
        ("Reload", "reload"),
    ] {
        let expected = format!("`{word}`: there is no such command: did you mean `{near}`?");
        assert_eq!(error(&format!("mmapfs {word} a b")), expected);
    }
    let none = error("mmapfs qqqqqq a");
    assert_eq!(none, "`qqqqqq`: there is no such command, nor a source of that name to mount");
}

#[test]
fn hidden_commands_are_known_and_not_suggested() {
    assert!(matches!(invocation("mmapfs man /tmp"), Ok(Invocation::Verb(Verb::Man { .. }))));
    let completions = invocation("mmapfs completions bash");
    assert!(matches!(completions, Ok(Invocation::Verb(Verb::Completions { .. }))));
    assert!(!error("mmapfs completion bash").contains("completions"));
}

#[test]
fn the_helper_of_mount_has_letters_of_its_own() {
    for name in ["mount.mmapfs", "/sbin/mount.fuse.mmapfs"] {
        let args = helper(&format!("{name} /srv /mnt -sfnv -t fuse.mmapfs -o rw,noauto"));
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose);
        assert_eq!(
            (args.source.as_path(), args.mountpoint.as_path()),
            (Path::new("/srv"), Path::new("/mnt"))
        );
        assert_eq!(args.options, ["rw,noauto"]);
    }
    // A source of a helper may have a command's name.
    assert_eq!(helper("mount.mmapfs status /mnt").source, Path::new("status"));
    assert!(error("mount.mmapfs /srv").contains("<MNT>"));
    assert!(error("mount.mmapfs /srv /mnt -N /ns").contains("'-N'"));
}

#[test]
fn help_and_version_are_texts_and_nothing_is_an_error() {
    for line in ["mmapfs --help", "mmapfs -V", "mmapfs help mount", "mmapfs mount --help"] {
        assert!(matches!(invocation(line), Ok(Invocation::Text(_))), "{line}");
    }
    assert!(matches!(invocation("mmapfs"), Ok(Invocation::Nothing(_))));
    assert!(matches!(parse(&[]), Ok(Invocation::Nothing(_))));
}

#[test]
fn mistakes_are_one_line() {
    for (line, part) in [
        ("mmapfs mount /srv", "<MNT>"),
        ("mmapfs mount /srv /mnt /more", "unexpected argument '/more'"),
        ("mmapfs mount --chck /srv /mnt", "'--check'"),
        ("mmapfs mount --json /srv /mnt", "--check"),
        ("mmapfs advise", "<ADVICE>"),
        ("mmapfs advise wilneed f", "did you mean `willneed`?"),
        ("mmapfs advise willneed", "<PATH>"),
        ("mmapfs advise willneed f --range 1-0", "ends before it starts"),
        ("mmapfs advise willneed f --range x", "is not a range"),
        ("mmapfs flush --mode asnc f", "did you mean `async`?"),
        ("mmapfs log loud m", "known are off error warn info debug trace"),
        ("mmapfs umount", "<MNT>"),
        ("mmapfs status --jsn", "'--json'"),
    ] {
        let message = error(line);
        assert!(message.contains(part) && !message.contains("Usage"), "{line}: {message}");
    }
}

#[test]
fn a_range_may_begin_with_a_hyphen() {
    use crate::range::RangeSpec;
    for (line, expected) in [
        ("mmapfs advise willneed --range -1M f", RangeSpec::UpTo { end: 1 << 20 }),
        ("mmapfs advise --range=-1M willneed f", RangeSpec::UpTo { end: 1 << 20 }),
        ("mmapfs advise MADV_WillNeed f", RangeSpec::All),
    ] {
        let Ok(Invocation::Verb(Verb::Advise(args))) = invocation(line) else { panic!("{line}") };
        assert_eq!(args.span.range, expected, "{line}");
        assert_eq!(args.advice, crate::advice::Advice::WillNeed);
    }
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
    HelperArgs::command().debug_assert();
}

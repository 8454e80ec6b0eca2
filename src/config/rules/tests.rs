use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::advice::{Advice, Effect};
use crate::error::FailureKind;
use crate::flags::Prot;

/// The options of a mount with `access`.
fn mount(access: &str) -> ViewOptions {
    ViewOptions { access: access.parse().unwrap(), ..ViewOptions::default() }
}

fn parse_text(text: &str) -> Result<RuleSet, Failure> {
    RuleSet::parse(text, "rules.toml", &mount("write"))
}

/// The error of a text that has one.
fn refusal(text: &str) -> String {
    let failure = parse_text(text).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage);
    failure.to_string()
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = parse_text(
        "[[rule]]\nmatch = 'a/*.db'\nadvice = 'random'\n\n\
         [[rule]]\nmatch = '**/*.db'\naccess = 'read'\n",
    )
    .unwrap();
    assert_eq!((rules.len(), rules.is_empty()), (2, false));
    let line = |path: &str| rules.matching(Path::new(path)).map(|rule| rule.line);
    assert_eq!(line("a/x.db"), Some(1));
    assert_eq!(line("a/b/x.db"), Some(5));
    assert_eq!(line("x.db"), Some(5));
    assert_eq!(line("x.db2"), None);
    assert!(rules.rules()[0].mode.writable() && !rules.rules()[1].mode.writable());
}

#[test]
fn a_star_stops_at_a_slash_and_two_cross_it() {
    let table = [
        ("*.db", "a.db", true),
        ("*.db", "a/b.db", false),
        ("/*.db", "a.db", true),
        ("**/*.db", "a.db", true),
        ("**/*.db", "a/b/c.db", true),
        ("a/**", "a/b/c", true),
        ("a/**", "a", false),
        ("a?b", "a/b", false),
        ("[ab].x", "b.x", true),
        ("x.db{,-wal}", "x.db-wal", true),
        ("x.db{,-wal}", "x.db", true),
        ("a b/\\*", "a b/*", true),
    ];
    for (pattern, path, matches) in table {
        let text = format!("[[rule]]\nmatch = '{pattern}'\naccess = 'read'");
        let rules = parse_text(&text).unwrap();
        assert_eq!(rules.matching(Path::new(path)).is_some(), matches, "{pattern} on {path}");
    }
}

#[test]
fn what_a_rule_does_not_say_is_as_the_mount_says_it() {
    let parse_over = |base: ViewOptions, text: &str| {
        let text = format!("[[rule]]\nmatch = '**'\n{text}\n");
        let rules = RuleSet::parse(&text, "r", &base).unwrap();
        (rules.rules()[0].view, rules.rules()[0].mode)
    };
    let (view, mode) = parse_over(mount("read"), "advice = 'random'");
    assert_eq!((view.access, mode.advice, mode.writable()), (Access::Read, Advice::Random, false));

    let (view, mode) = parse_over(mount("read"), "access = 'write'");
    assert_eq!((view.access, mode.writable()), (Access::Write, true));

    let (view, mode) = parse_over(mount("read"), "flags = 'private'");
    assert_eq!((view.access, mode.prot), (Access::Default, Prot::READ));

    let base = ViewOptions { flags: Some("populate".parse().unwrap()), ..mount("default") };
    let (_, mode) = parse_over(base, "prot = 'r'");
    assert!(mode.flags.contains("populate") && !mode.writable());

    let base = ViewOptions { advice: Some(Advice::Sequential), ..mount("write") };
    let (_, mode) = parse_over(base, "access = 'read'");
    assert_eq!(mode.advice, Advice::Sequential);
}

#[test]
fn an_empty_file_has_no_rules() {
    for text in ["", "\n# nothing\n", "rule = []\n"] {
        let rules = parse_text(text).unwrap();
        assert!(rules.is_empty() && rules.matching(Path::new("a")).is_none());
    }
    assert!(RuleSet::default().matching(Path::new("a")).is_none());
}

#[test]
fn every_mistake_names_its_line_and_its_reason() {
    let table = [
        ("[[rules]]\n", "1: there is no key `rules`: did you mean `rule`?"),
        ("x = 1\n", "1: there is no key `x`: known are rule"),
        ("\n[rule]\nmatch = 'a'", "2: rules are tables in double brackets: write [[rule]]"),
        ("rule = 7", "1: rules are tables in double brackets: write [[rule]]"),
        ("rule = [7]", "1: rules are tables in double brackets: write [[rule]]"),
        (
            "[[rule]]\nmatch = 'a'\naces = 'read'",
            "3: there is no key `aces`: did you mean `access`?",
        ),
        ("[[rule]]\nmatch = 'a'\nsize = 3", "3: there is no key `size`: known are match access"),
        ("[[rule]]\nmatch = 'a'\naccess = 1", "3: access: give a string, in quotes"),
        ("[[rule]]\nmatch.x = 'a'", "2: match: give a string, in quotes"),
        ("\n[[rule]]\naccess = 'read'", "2: the rule has no `match`"),
        ("[[rule]]\n\n[[rule]]", "1: the rule has no `match`"),
        ("#\n[[rule]]\nmatch = 'a'", "2: the rule has no effect: give it access"),
        ("[[rule]]\nmatch = ''\naccess = 'read'", "2: match: `` can match no path"),
        ("[[rule]]\nmatch = 'a/'\naccess = 'read'", "2: match: `a/` can match no path"),
        ("[[rule]]\nmatch = '[a'\naccess = 'read'", "2: match: `[a` is no pattern: "),
        ("[[rule]]\naccess = 'raed'\nmatch = 'a'", "2: access: there is no access mode `raed`"),
        ("[[rule]]\nmatch = 'a'\nflags = 'fixed'", "3: flags: "),
        ("[[rule]]\nmatch = 'a'\nprot = 'q'", "3: prot: there is no protection `q`"),
        ("[[rule]]\nmatch = 'a'\n\nadvice = 'wilneed'", "4: advice: there is no advice `wilneed`"),
        (
            "[[rule]]\nmatch = 'a'\nadvice = 'remove'",
            "3: a mapping cannot start with advice=remove",
        ),
        ("[[rule]]\nmatch = 'a'\naccess = 'copy'\nprot = 'rw'", "3: access=copy decides"),
        ("[[rule]]\nflags = 'shared'\nmatch = 'a'\naccess = 'read'", "4: access=read"),
        ("[[rule]]\nmatch = 'a'\nmatch = 'b'", "3: duplicate key"),
        ("[[rule]]\nmatch = 'a", "2: "),
        ("[[rule]\n", "1: "),
    ];
    for (text, wanted) in table {
        let told = refusal(text);
        assert!(told.starts_with(&format!("rules.toml:{wanted}")), "{text:?} gives {told:?}");
        assert!(!told.contains('\n'), "{told:?}");
    }
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    let text = format!("rule = {}", "[".repeat(100_000));
    assert!(refusal(&text).starts_with("rules.toml:1: "));
}

#[test]
fn a_thousand_rules_are_read_at_once() {
    let text: String = (0..1000)
        .map(|n| {
            format!("[[rule]]\nmatch = '**/dir{n}/{{a,b}}*/**/x?[0-9].{n}'\naccess = 'read'\n")
        })
        .collect();
    let start = Instant::now();
    let rules = parse_text(&text).unwrap();
    assert_eq!(rules.matching(Path::new("y/dir999/ab/c/d/xx1.999")).unwrap().line, 2998);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_file_is_read_and_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    let load = || RuleSet::load(&path, &mount("write"));

    let failure = load().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    assert!(failure.to_string().contains("r.toml: cannot read the rules: "), "{failure}");

    std::fs::write(&path, b"[[rule]]\nmatch = '\xff'\n").unwrap();
    let failure = load().unwrap_err();
    assert!(failure.to_string().ends_with("r.toml:2: this is not UTF-8 text"), "{failure}");

    std::fs::write(&path, vec![b'#'; LARGEST_FILE as usize + 1]).unwrap();
    assert!(load().unwrap_err().to_string().ends_with("at most 1048576 bytes"));

    std::fs::write(&path, "[[rule]]\nmatch = 'x'\naccess = 'read'\n").unwrap();
    assert_eq!(load().unwrap().len(), 1);
}

/// A rule as text, with any mixture of options that is valid over `access=write`.
fn any_rule() -> impl Strategy<Value = String> {
    let pattern = "[a-z *?\"\u{e9}-]{1,8}(/\\*\\*/[a-z*]{1,4}(\\{a,b\\})?)?";
    let hints: Vec<_> = Advice::ALL.iter().filter(|a| a.effect() == Effect::Hint).collect();
    let view = proptest::sample::select(vec![
        "access = 'read'",
        "access = 'write'",
        "access = 'default'",
        "flags = 'shared+populate'\nprot = 'r'",
        "flags = 'private|noreserve'\nprot = 'rx'",
        "flags = 'locked'",
        "prot = 'rw'",
    ]);
    let advice = proptest::option::of(proptest::sample::select(hints));
    (pattern, view, advice).prop_map(|(pattern, view, advice)| {
        let advice = advice.map_or(String::new(), |advice| format!("advice = '{advice}'"));
        format!("[[rule]]\n{view}\nmatch = {}\n{advice}\n", TomlString(&pattern))
    })
}

proptest! {
    #[test]
    fn printed_rules_parse_back(
        texts in proptest::collection::vec(any_rule(), 0..8),
        base in proptest::sample::select(vec!["read", "write", "default"]),
    ) {
        let base = mount(base);
        // Of the mixtures that are valid over `write`, none is invalid over another base.
        let rules = RuleSet::parse(&texts.concat(), "first", &base).unwrap();
        prop_assert_eq!(rules.len(), texts.len());
        let again = RuleSet::parse(&rules.to_string(), "second", &base).unwrap();
        for (one, other) in rules.rules().iter().zip(again.rules()) {
            prop_assert_eq!(&one.pattern, &other.pattern);
            prop_assert_eq!((one.view, one.mode), (other.view, other.mode));
        }
        prop_assert_eq!(rules.len(), again.len());
    }

    #[test]
    fn a_mistake_is_found_on_its_line(
        before in proptest::collection::vec(any_rule(), 0..6),
        blank in 0usize..5,
        after in any_rule(),
    ) {
        let before = before.concat() + &"\n".repeat(blank);
        let text = format!("{before}[[rule]]\nmatch = 'a'\nacess = 'read'\n{after}");
        let line = before.matches('\n').count() + 3;
        let told = refusal(&text);
        prop_assert!(told.starts_with(&format!("rules.toml:{line}: ")), "{told}");
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse_text(&text);
    }

    #[test]
    fn no_text_that_is_nearly_a_rules_file_panics(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "[[rule]]", "[rule]", "rule", "match", "access", "flags", "=", "\n", "'a'", "\"**/[\"",
            "'read'", "'shared+'", "{", "}", "[", "]", ",", ".", "1", "'''", "\\", "#", "\u{e9}",
        ]), 0..30),
    ) {
        if let Err(failure) = parse_text(&parts.concat()) {
            let (line, _) = failure.subject.strip_prefix("rules.toml:").map(|l| (l, ())).unwrap();
            let lines = parts.concat().matches('\n').count() + 1;
            prop_assert!((1..=lines).contains(&line.parse::<usize>().unwrap()));
            prop_assert!(!failure.to_string().contains('\n'));
        }
    }
}

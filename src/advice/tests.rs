use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

#[test]
fn the_numbers_are_those_of_the_kernel() {
    let table = [
        ("normal", 0),
        ("random", 1),
        ("sequential", 2),
        ("willneed", 3),
        ("dontneed", 4),
        ("free", 8),
        ("remove", 9),
        ("dontfork", 10),
        ("dofork", 11),
        ("mergeable", 12),
        ("unmergeable", 13),
        ("hugepage", 14),
        ("nohugepage", 15),
        ("dontdump", 16),
        ("dodump", 17),
        ("wipeonfork", 18),
        ("keeponfork", 19),
        ("cold", 20),
        ("pageout", 21),
        ("populate_read", 22),
        ("populate_write", 23),
        ("dontneed_locked", 24),
        ("collapse", 25),
        ("hwpoison", 100),
        ("soft_offline", 101),
        ("guard_install", 102),
        ("guard_remove", 103),
    ];
    for (name, number) in table {
        assert_eq!(name.parse::<Advice>().unwrap().number(), number, "{name}");
    }
    assert_eq!(Advice::ALL.len(), table.len());
}

#[test]
fn names_and_numbers_are_distinct() {
    let names: HashSet<_> = Advice::ALL.iter().map(|advice| advice.name()).collect();
    let numbers: HashSet<_> = Advice::ALL.iter().map(|advice| advice.number()).collect();
    assert_eq!((names.len(), numbers.len()), (Advice::ALL.len(), Advice::ALL.len()));
}

#[test]
fn only_remove_destroys_and_only_the_testing_ones_are_forbidden() {
    let with = |effect| Advice::ALL.iter().copied().filter(move |a| a.effect() == effect);
    assert!(with(Effect::Destroy).eq([Advice::Remove]));
    assert!(with(Effect::Discard).eq([Advice::DontNeed, Advice::DontNeedLocked, Advice::Free]));
    assert!(with(Effect::Forbidden).eq([
        Advice::HwPoison,
        Advice::SoftOffline,
        Advice::GuardInstall,
        Advice::GuardRemove
    ]));
}

#[test]
fn an_undo_replaces_what_it_undoes_and_nothing_else() {
    let pairs = [
        (Advice::Normal, Advice::Random),
        (Advice::Sequential, Advice::Random),
        (Advice::NoHugePage, Advice::HugePage),
        (Advice::Unmergeable, Advice::Mergeable),
        (Advice::DoDump, Advice::DontDump),
        (Advice::DoFork, Advice::DontFork),
        (Advice::KeepOnFork, Advice::WipeOnFork),
    ];
    for (undo, done) in pairs {
        assert!(undo.replaces(done) && done.replaces(undo) && undo.replaces(undo), "{undo}");
    }
    assert!(!Advice::Normal.replaces(Advice::HugePage));
    assert!(!Advice::WillNeed.replaces(Advice::WillNeed));
    assert!(!Advice::WillNeed.replaces(Advice::Cold));
}

#[test]
fn a_mistyped_advice_is_answered_with_the_nearest_name() {
    let error = "wilneed".parse::<Advice>().unwrap_err();
    assert_eq!(error.to_string(), "there is no advice `wilneed`: did you mean `willneed`?");
    let error = "MADV_POPULATE".parse::<Advice>().unwrap_err();
    assert_eq!(error.nearest, None);
    assert!(error.to_string().contains("populate_read populate_write"), "{error}");
}

proptest! {
    #[test]
    fn a_name_is_known_in_every_spelling(
        advice in proptest::sample::select(Advice::ALL),
        upper: bool,
        prefix: bool,
        dash: bool,
    ) {
        let mut word = if prefix { format!("madv_{advice}") } else { advice.to_string() };
        if upper { word = word.to_ascii_uppercase(); }
        if dash { word = word.replace('_', "-"); }
        prop_assert_eq!(word.parse(), Ok(advice));
    }

    #[test]
    fn a_word_that_is_no_advice_says_so_in_one_line(word in any::<String>()) {
        if let Err(error) = word.parse::<Advice>() {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

use super::*;

fn flags(text: &str) -> Result<MapFlags, FlagsError> {
    text.parse()
}

fn view(access: Access, flags: Option<&str>, prot: Option<&str>) -> ViewOptions {
    ViewOptions {
        access,
        flags: flags.map(|text| text.parse().unwrap()),
        prot: prot.map(|text| text.parse().unwrap()),
        advice: None,
        plane: None,
    }
}

#[test]
fn flags_are_read_in_any_spelling() {
    let expected = libc::MAP_SHARED | libc::MAP_POPULATE | libc::MAP_NORESERVE;
    for text in [
        "shared+populate+noreserve",
        "populate|noreserve",
        "MAP_SHARED|MAP_POPULATE|MAP_NORESERVE",
        "Map_Populate + NoReserve + shared+shared",
    ] {
        assert_eq!(flags(text).unwrap().bits(), expected, "{text}");
    }
}

/// Every known flag with the reason why it is refused; `None` when it is passed on.
fn known_flags() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    KNOWN.iter().map(|known| match known.rule {
        Rule::Refuse(reason) => (known.name, Some(reason)),
        Rule::Share(_) | Rule::Pass(_) => (known.name, None),
    })
}

#[test]
fn every_known_flag_is_passed_or_refused_with_a_reason() {
    for (name, refusal) in known_flags() {
        let lone = match name {
            "sync" => "shared_validate+sync".to_owned(),
            huge if huge.starts_with("huge_") => format!("hugetlb+{huge}"),
            other => other.to_owned(),
        };
        match (flags(&lone), refusal) {
            (Ok(flags), None) => assert!(flags.contains(name), "{name}"),
            (Err(FlagsError::Refused { reason, .. }), Some(known)) => assert_eq!(reason, known),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[test]
fn printed_flags_read_back_the_same() {
    for text in ["private", "shared_validate+sync", "populate+locked+hugetlb+huge_1gb", "32bit"] {
        let parsed = flags(text).unwrap();
        assert_eq!(flags(&parsed.to_string()).unwrap(), parsed, "{text}");
    }
    assert_eq!(flags("hugetlb+huge_2mb").unwrap().to_string(), "shared+hugetlb+huge_2mb");
}

#[test]
fn combinations_that_mmap_would_misread_are_refused() {
    for text in
        ["shared+private", "sync", "private+sync", "huge_2mb", "hugetlb+huge_2mb+huge_1gb", ""]
    {
        assert!(flags(text).is_err(), "{text}");
    }
}

#[test]
fn an_unknown_flag_names_the_nearest() {
    let message = flags("popluate").unwrap_err().to_string();
    assert_eq!(message, "there is no mapping flag `popluate`: did you mean `populate`?");
    assert_eq!(flags("qqq").unwrap_err().to_string(), "there is no mapping flag `qqq`");
}

#[test]
fn protections_are_read_by_letters_and_by_names() {
    for (text, printed) in [
        ("r", "r"),
        ("rw", "rw"),
        ("wr", "rw"),
        ("RX", "rx"),
        ("rwx", "rwx"),
        ("w", "w"),
        ("none", "none"),
        ("PROT_NONE", "none"),
        ("PROT_READ|PROT_WRITE", "rw"),
        ("read+exec", "rx"),
    ] {
        let prot: Prot = text.parse().unwrap();
        assert_eq!(prot.to_string(), printed);
        assert_eq!(prot.to_string().parse::<Prot>().unwrap(), prot);
    }
    for text in ["", "ro", "r+", "sem", "PROT_GROWSUP"] {
        assert!(text.parse::<Prot>().is_err(), "{text}");
    }
    assert_eq!(Prot::READ_WRITE.bits(), libc::PROT_READ | libc::PROT_WRITE);
}

#[test]
fn access_modes_mean_what_they_mean_in_python() {
    for (options, flags, prot) in [
        (view(Access::Default, None, None), "shared", "rw"),
        (view(Access::Read, None, None), "shared", "r"),
        (view(Access::Write, None, None), "shared", "rw"),
        (view(Access::Copy, None, None), "private", "rw"),
        (view(Access::Default, Some("private"), Some("r")), "private", "r"),
        (view(Access::Default, Some("populate"), None), "shared+populate", "rw"),
    ] {
        let mode = options.resolve().unwrap();
        assert_eq!((mode.flags.to_string(), mode.prot.to_string()), (flags.into(), prot.into()));
        assert_eq!(mode.writable(), prot.contains('w'));
        assert_eq!(mode.readable(), prot.contains('r'));
        assert_eq!(mode.advice, Advice::Normal);
    }
}

#[test]
fn access_together_with_flags_or_prot_is_refused() {
    for options in [
        view(Access::Read, Some("shared"), None),
        view(Access::Write, None, Some("rw")),
        view(Access::Copy, Some("private"), None),
    ] {
        let error = options.resolve().unwrap_err();
        assert_eq!(error, FlagsError::AccessWithFlags(options.access));
    }
}

#[test]
fn a_private_view_that_is_written_copies() {
    let copy = view(Access::Copy, None, None).resolve().unwrap();
    let private = view(Access::Default, Some("private"), None).resolve().unwrap();
    assert_eq!(copy, private);
    for (options, copies) in [
        (view(Access::Copy, None, None), true),
        (view(Access::Default, Some("private+populate"), Some("rw")), true),
        (view(Access::Default, Some("private"), Some("r")), false),
        (view(Access::Write, None, None), false),
    ] {
        let mode = options.resolve().unwrap();
        assert_eq!(mode.copies(), copies, "{options:?}");
        assert_eq!(mode.in_scratch() == mode, !copies, "{options:?}");
        assert!(!copies || mode.in_scratch().writable(), "{options:?}");
        assert!(!copies || !mode.in_base().writable(), "{options:?}");
        assert!(!mode.in_base().copies() && !mode.in_scratch().copies(), "{options:?}");
    }
    assert!(!copy.asks_for_mapping(), "a plain copy needs no mapping");
}

#[test]
fn a_mapping_starts_with_a_hint_only() {
    let start = |advice| ViewOptions { advice: Some(advice), ..ViewOptions::default() }.resolve();
    assert_eq!(start(Advice::Random).unwrap().advice, Advice::Random);
    assert_eq!(start(Advice::Remove), Err(FlagsError::StartingAdvice(Advice::Remove)));
}

#[test]
fn access_names_are_read_in_any_case() {
    for access in Access::ALL {
        assert_eq!(access.to_string().parse(), Ok(access));
        assert_eq!(format!("ACCESS_{}", access.name().to_uppercase()).parse(), Ok(access));
    }
    let message = "raed".parse::<Access>().unwrap_err().to_string();
    assert!(message.contains("`read`"), "{message}");
}

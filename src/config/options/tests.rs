use std::time::Duration;

use super::*;
use crate::config::{BaseChanged, Limit};
use crate::error::FailureKind;
use crate::flags::Access;

fn parse(list: &str) -> Result<MountOptions, Failure> {
    MountOptions::parse([list], Unknown::Refused)
}

fn error(list: &str) -> String {
    let failure = parse(list).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage);
    failure.to_string()
}

fn words(list: &[u8]) -> Vec<OsString> {
    split(OsStr::from_bytes(list))
}

#[test]
fn nothing_given_means_the_defaults() {
    let options = parse("").unwrap();
    assert_eq!(options, MountOptions::default());
    assert_eq!(options.settings.entry_timeout, None);
    assert!(options.settings.clone_fd && options.kernel.default_permissions);
    assert_eq!(options.kernel.flag_words(), ["rw", "nosuid", "nodev"]);
}

#[test]
fn every_option_of_the_table_is_found_once_and_explained() {
    for known in known() {
        assert_eq!(super::known().iter().filter(|other| other.name == known.name).count(), 1);
        assert!(Known::find(known.name).is_some(), "{}", known.name);
        assert!(known.group == Group::Passed || !known.doc.is_empty(), "{}", known.name);
        assert!(!known.doc.trim_end_matches("...").ends_with('.'), "{}", known.name);
        let bare = parse(known.name);
        let takes = match known.action {
            Action::Value(..) | Action::Refuse(_) => false,
            Action::Flag(_) | Action::Switch(_) | Action::Mount { .. } | Action::Pass => true,
        };
        assert_eq!(bare.is_ok(), takes, "{}: {bare:?}", known.name);
    }
    assert_eq!(Group::ALL.iter().flat_map(|group| group.members()).count(), known().len());
}

#[test]
fn values_arrive_where_they_belong() {
    let options = parse(
        "access=read,advice=random,rules=r.toml,control=visible,control_name=ctl,threads=8,busy_poll=20,\
         clone_fd=off,max_mappings=100,log=debug,log_file=l,fsname=a\\,b,subtype=x,max_read=65536,\
         entry_timeout=1.5,attr_timeout=0,negative_timeout=60,context=u:r:t",
    )
    .unwrap();
    assert_eq!(options.view.access, Access::Read);
    assert_eq!(options.rules, Some(PathBuf::from("r.toml")));
    assert_eq!(options.control, ControlVisibility::Visible);
    assert_eq!(options.settings.control_name, "ctl");
    assert_eq!((options.settings.threads, options.settings.clone_fd), (8, false));
    assert_eq!(options.settings.busy_poll, Duration::from_micros(20));
    assert_eq!(options.settings.max_mappings, Some(100));
    assert_eq!(options.settings.log, Some(log::LevelFilter::Debug));
    assert_eq!(options.log_file, Some(PathBuf::from("l")));
    assert_eq!(options.fsname, Some("a,b".into()));
    assert_eq!(options.kernel.fstype(), "fuse.x");
    assert_eq!(options.kernel.max_read, Some(65536));
    assert_eq!(options.settings.entry_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(options.settings.attr_timeout, Some(Duration::ZERO));
    assert_eq!(options.settings.negative_timeout, Some(Duration::from_secs(60)));
    assert_eq!(options.kernel.contexts, [("context", OsString::from("u:r:t"))]);
}

#[test]
fn the_options_of_a_scratch_arrive_in_it() {
    let options =
        parse("scratch=/s\\,1,scratch_max=1G,copy_up=4K,share,rebase,base_changed=mix").unwrap();
    let expected = ScratchConfig {
        dir: Some("/s,1".into()),
        max: Some(Limit::Bytes(1 << 30)),
        copy_up: Some(4096),
        share: true,
        rebase: true,
        base_changed: Some(BaseChanged::Mix),
    };
    assert_eq!(options.scratch, expected);
    for (list, limit) in [
        ("scratch_max=20%", Limit::Percent(20)),
        ("scratch_max=none", Limit::None),
        ("scratch_max=123", Limit::Bytes(123)),
    ] {
        let options = parse(list).unwrap();
        assert_eq!(options.scratch.max, Some(limit));
        assert_eq!(format!("scratch_max={limit}"), list);
    }
    assert!(!parse("share,share=off").unwrap().scratch.share);
}

#[test]
fn the_last_of_contrary_words_holds() {
    for (list, expected) in [
        ("ro,rw", "rw,nosuid,nodev"),
        ("rw,ro,suid,dev,noexec", "ro,noexec"),
        ("suid,nosuid", "rw,nosuid,nodev"),
        ("noatime,relatime", "rw,nosuid,nodev,relatime"),
        ("strictatime,noatime", "rw,nosuid,nodev,noatime"),
        ("sync,async,nodiratime,lazytime", "rw,nosuid,nodev,nodiratime,lazytime"),
    ] {
        assert_eq!(parse(list).unwrap().kernel.flag_words().join(","), expected, "{list}");
    }
    let lists = ["clone_fd=off,log=warn", "clone_fd,debug"];
    let options = MountOptions::parse(lists, Unknown::Refused).unwrap();
    assert_eq!(
        (options.settings.clone_fd, options.settings.log),
        (true, Some(log::LevelFilter::Debug))
    );
}

#[test]
fn the_words_of_mount_and_fstab_are_passed_over() {
    let list = "defaults,_netdev,nofail,noauto,user,user=joe,x-systemd.automount,\
                X-mount.mkdir=0755,comment=a word,uhelper=udisks2";
    assert_eq!(parse(list).unwrap(), MountOptions::default());
}

#[test]
fn an_unknown_option_names_the_nearest() {
    assert_eq!(
        error("acess=read"),
        "option `acess=read`: there is no such option: did you mean `access`?"
    );
    assert_eq!(error("ro,qqqqqq"), "option `qqqqqq`: there is no such option");
    let tolerated = MountOptions::parse(["acess=read,ro"], Unknown::Tolerated).unwrap();
    assert!(tolerated.kernel.flags.contains(MountFlags::RDONLY));
}

#[test]
fn bad_values_are_one_line_that_names_the_option() {
    for (list, reason) in [
        ("access=raed", "did you mean `read`"),
        ("access", "it needs a value: access=MODE"),
        ("access=", "it needs a value: access=MODE"),
        ("ro=1", "it takes no value"),
        ("allow_other=yes", "it takes no value"),
        ("clone_fd=maybe", "`on` or `off`"),
        ("threads=0", "from 1 to 64"),
        ("threads=65", "from 1 to 64"),
        ("threads=four", "not a number"),
        ("busy_poll=1001", "at most 1000 microseconds"),
        ("busy_poll=-1", "not a number"),
        ("max_mappings=0", "at least 1"),
        ("max_mappings=-1", "not a number"),
        ("max_read=4095", "at least 4096"),
        ("entry_timeout=-1", "give seconds"),
        ("attr_timeout=inf", "give seconds"),
        ("scratch_max=lots", "not a size"),
        ("scratch_max=0", "larger than 0"),
        ("scratch_max=0%", "from 1% to 100%"),
        ("scratch_max=101%", "from 1% to 100%"),
        ("copy_up=1.5M", "not a size"),
        ("base_changed=mixed", "known are eio refuse mix"),
        ("share=maybe", "`on` or `off`"),
        ("control=hiden", "did you mean `hidden`"),
        ("control=z", "known are hidden visible off"),
        ("control_name=a/b", "one file name"),
        ("control_name=..", "one file name"),
        ("log=verbose", "known are off error"),
        ("subtype=a b", "letters, digits"),
        ("flags=fixed", "leaves the address"),
        ("advice=wilneed", "did you mean `willneed`"),
        ("direct_io", "it is refused: "),
        ("umask=022", "it is refused: "),
        ("allow_other,allow_root", "excludes allow_other"),
    ] {
        let message = error(list);
        assert!(message.contains(reason), "{list}: {message}");
        assert!(message.starts_with("option `") && !message.contains('\n'), "{message}");
    }
    assert!(!error("x\ny").contains('\n'));
}

#[test]
fn lists_are_split_as_libfuse_splits_them() {
    assert_eq!(words(b"a,b=c,,d"), ["a", "b=c", "d"]);
    assert_eq!(words(br"fsname=a\,b,c"), ["fsname=a,b", "c"]);
    assert_eq!(words(br"a\\,b"), [r"a\", "b"]);
    assert_eq!(words(br"a\054b"), ["a,b"]);
    assert_eq!(words(br"a\05"), ["a05"]);
    assert_eq!(words(br"a\"), [r"a\"]);
    assert_eq!(words(b"\xff=\xfe"), [OsStr::from_bytes(b"\xff=\xfe")]);
}

proptest::proptest! {
    #[test]
    fn what_is_escaped_is_split_back(bytes in proptest::collection::vec(1..=255u8, 1..40)) {
        let value = OsStr::from_bytes(&bytes);
        let escaped = escape(value);
        proptest::prop_assert_eq!(split(OsStr::from_bytes(&escaped)), [value]);
    }

    #[test]
    fn no_list_of_options_makes_the_parser_panic(bytes: Vec<u8>) {
        let _ = MountOptions::parse([OsStr::from_bytes(&bytes)], Unknown::Refused);
    }
}

use super::*;
use crate::config::options::known;

fn page(name: &str) -> String {
    let pages = pages().unwrap();
    let (_, text) = pages.iter().find(|(other, _)| other == name).unwrap();
    String::from_utf8(text.clone()).unwrap()
}

/// The page without the marks of roff.
fn plain(name: &str) -> String {
    page(name).replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\&", "")
}

#[test]
fn every_command_that_is_not_hidden_has_a_page() {
    let names: Vec<String> = pages().unwrap().into_iter().map(|(name, _)| name).collect();
    for name in ["mmapfs.1", "mmapfs-mount.1", "mmapfs-scratches.1", "mmapfs-scratches-remove.1"]
        .into_iter()
        .chain(["mmapfs-status.1", "mmapfs-doctor.1", "mount.mmapfs.8"])
    {
        assert!(names.iter().any(|other| other == name), "{name} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("completions") || name.contains("-man")));
}

#[test]
fn the_page_of_mount_has_every_option() {
    let page = plain("mmapfs-mount.1");
    for known in known() {
        assert!(page.contains(&known.usage()), "{}", known.name);
    }
}

#[test]
fn the_main_page_has_the_control_verbs_and_the_exit_codes() {
    let page = plain("mmapfs.1");
    for verb in ControlVerb::ALL {
        assert!(page.contains(verb.usage()), "{verb}");
    }
    for title in ["NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"] {
        assert!(page.contains(title), "{title}");
    }
}

#[test]
fn pages_are_made_the_same_every_time() {
    assert_eq!(pages().unwrap(), pages().unwrap());
}

#[test]
fn every_shell_has_completions() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
        let script = completions(shell).unwrap();
        assert!(script.contains("advise"), "{shell}");
        // Only these two complete the values of arguments that have no name.
        let values = matches!(shell, Shell::Bash | Shell::Zsh);
        assert!(!values || script.contains("willneed"), "{shell}");
    }
}

//! What a scratch directory holds when nobody uses it: nothing that nothing refers to.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::common::*;

/// Fails when a scratch that is not mounted has something left over, or lacks something.
#[track_caller]
pub fn assert_tidy(scratch: &Path) {
    let wrong = untidy(scratch);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is left over in a scratch, or missing.
pub fn untidy(scratch: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(scratch.join("work")).unwrap() {
        wrong.push(format!("left in work: {:?}", entry.unwrap().file_name()));
    }
    let mut maps = HashMap::new();
    let mut see = |path: &Path| {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".mmapfs-tmp")) {
            wrong.push(format!("left: {}", path.display()));
        }
        let marked = ["trusted", "user"]
            .iter()
            .find_map(|space| xattr(path, &format!("{space}.mmapfs.pages")).ok());
        if let Some(id) = marked {
            let id: u64 = String::from_utf8(id).unwrap().parse().unwrap();
            maps.insert(format!("{id:016x}"), path.to_owned());
        }
    };
    visit(&scratch.join("upper"), &mut see);
    // Of some files all names that are left are found by the index alone.
    visit(&scratch.join("index"), &mut see);
    let mut there: Vec<String> = names(scratch.join("pages"));
    there.retain(|name| maps.remove(name).is_none());
    wrong.extend(there.iter().map(|name| format!("no file names the page map {name}")));
    for (name, path) in maps {
        wrong.push(format!("{}: its page map {name} is missing", path.display()));
    }
    wrong
}

fn visit(path: &Path, call: &mut impl FnMut(&Path)) {
    call(path);
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            visit(&entry.unwrap().path(), call);
        }
    }
}

use super::*;

fn told(json: &str, typed: &str, path: &str) -> String {
    let target = Target { mountpoint: "/mnt".into(), path: path.into() };
    let report = Report::from_json(json).unwrap();
    succeeded(report, Some((Path::new(typed), &target))).unwrap_err().to_string()
}

#[test]
fn the_reason_of_an_older_daemon_is_told_of_the_path_as_it_was_typed() {
    let old = r#"{"report":"error","error":"dir/file: No such file or directory","errno":2}"#;
    let expected = "../mnt/dir/file: No such file or directory";
    assert_eq!(told(old, "../mnt/dir/file", "dir/file"), expected);
    let new = r#"{"report":"error","error":"dir/file: No such file or directory","errno":2,
        "path":"dir/file","reason":"No such file or directory"}"#;
    assert_eq!(told(new, "../mnt/dir/file", "dir/file"), expected);
    let of_nothing = r#"{"report":"error","error":"it is busy","errno":16}"#;
    assert_eq!(told(of_nothing, "file", "file"), "file: it is busy");
    let whole = succeeded(Report::from_json(old).unwrap(), None).unwrap_err().to_string();
    assert!(whole.contains("dir/file: No such file or directory"), "{whole}");
}

#[test]
fn the_advice_of_an_older_daemon_has_no_effect_to_tell() {
    let old = r#"{"report":"advise","path":"file","advice":"willneed","range":[0,4096],"pages":1,
        "resident_before":0,"resident_after":1,"elapsed_us":5}"#;
    let report = succeeded(Report::from_json(old).unwrap(), None).unwrap();
    let text = report.to_string();
    assert!(text.contains("willneed") && !text.contains("effect"), "{text}");
}

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<(Vec<u8>, &[u8]), QuoteError> {
    unquote(text.as_bytes())
}

#[test]
fn an_ordinary_name_is_shown_as_it_is() {
    for name in ["a", "a b", "data/a.bin", "a\"b", "a\\nb", "it's", "\u{e9}\u{4e2d}", "-", "0-1"] {
        assert_eq!(name.shown().to_string(), name);
    }
}

#[test]
fn a_name_that_could_mislead_is_quoted_with_every_byte_of_it() {
    let table: [(&[u8], &str); 12] = [
        (b"", r#""""#),
        (b" a", r#"" a""#),
        (b"a ", r#""a ""#),
        (b"\"a", r#""\"a""#),
        (b"x\ny", r#""x\ny""#),
        (b"\\\t", r#""\\\t""#),
        (b"\x1b[31m", r#""\x1b[31m""#),
        (b"\x7f", r#""\x7f""#),
        (b"\xff\xfea", r#""\xff\xfea""#),
        ("\u{9b}2J".as_bytes(), r#""\xc2\x9b2J""#),
        ("a\u{202e}b".as_bytes(), r#""a\xe2\x80\xaeb""#),
        ("\u{61c}\u{200f}\u{2066}".as_bytes(), r#""\xd8\x9c\xe2\x80\x8f\xe2\x81\xa6""#),
    ];
    for (name, expected) in table {
        assert_eq!(OsStr::from_bytes(name).shown().to_string(), expected);
        assert_eq!(read(expected), Ok((name.to_vec(), &b""[..])));
    }
}

#[test]
fn a_quoted_name_may_have_the_escapes_of_c_of_git_and_of_json() {
    let table: [(&str, &[u8]); 6] = [
        (r#""\a\b\f\n\r\t\v\/\\\"""#, b"\x07\x08\x0c\n\r\t\x0b/\\\""),
        (r#""\012\377\0001""#, b"\n\xff\x001"),
        (r#""\x0A\xfF""#, b"\n\xff"),
        (r#""\u000a\u202E""#, b"\n\xe2\x80\xae"),
        (r#""\ud83d\ude00""#, b"\xf0\x9f\x98\x80"),
        ("\" a\tb \"", b" a\tb "),
    ];
    for (text, name) in table {
        assert_eq!(read(text), Ok((name.to_vec(), &b""[..])), "{text}");
    }
    assert_eq!(read("\"a\" b"), Ok((b"a".to_vec(), &b" b"[..])));
}

#[test]
fn a_quoted_name_with_a_mistake_is_none() {
    for text in ["", "a", "\"", "\"a", "\"a\\\""] {
        assert_eq!(read(text), Err(QuoteError::Unended), "{text}");
    }
    for text in [
        "\"\\",
        r#""\q""#,
        r#""\x""#,
        r#""\xf""#,
        r#""\xg0""#,
        r#""\x+1""#,
        r#""\400""#,
        r#""\08a""#,
        r#""\01""#,
        r#""\u12""#,
        r#""\ud83d""#,
        r#""\ud83dx""#,
        r#""\ud83d\u0041""#,
    ] {
        assert_eq!(read(text), Err(QuoteError::Escape), "{text}");
    }
}

#[test]
fn a_message_is_one_line_without_anything_that_a_terminal_obeys() {
    let text = "a\x1b[2J\nb\u{202e}c \"d\" \\";
    assert_eq!(Clean(text).to_string(), "a\\x1b[2J\\nb\\xe2\\x80\\xaec \"d\" \\");
    for (text, line) in [
        ("\u{1b}[2J\t\0", "\\x1b[2J\\t\\x00"),
        ("\u{202e}txt", "\\xe2\\x80\\xaetxt"),
        ("plain 'text' \\ \u{e9}", "plain 'text' \\ \u{e9}"),
    ] {
        assert_eq!(Clean(text).to_string(), line);
    }
    assert_eq!(CleanLines("a\tb\n\rc").to_string(), "a\tb\n\\rc");
}

#[test]
fn json_has_nothing_that_a_terminal_obeys() {
    let text = "a\x1b\n\"\u{7f}b\u{9b}\u{202e}\u{e9}";
    let json = to_json(text).unwrap();
    assert_eq!(json, "\"a\\u001b\\n\\\"\\u007fb\\u009b\\u202e\u{e9}\"");
    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
}

#[test]
fn a_name_in_json_is_a_string_or_an_array_of_bytes() {
    let name = Name::from("a\n\u{e9}");
    assert_eq!(serde_json::to_string(&name).unwrap(), "\"a\\n\u{e9}\"");
    let name = Name::from(OsStr::from_bytes(b"a\xff"));
    assert_eq!(serde_json::to_string(&name).unwrap(), "[97,255]");
    for wrong in ["1", "[256]", "null", "{}"] {
        assert!(serde_json::from_str::<Name>(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn every_name_reads_back_from_what_is_shown(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let name = Name::from(OsStr::from_bytes(&bytes));
        let text = name.to_string();
        prop_assert!(!text.contains(is_harmful), "{text:?}");
        if text.starts_with('"') {
            prop_assert_eq!(read(&text), Ok((bytes.clone(), &b""[..])));
        } else {
            prop_assert_eq!(text.as_bytes(), &bytes[..]);
        }
        let json = to_json(&name).unwrap();
        prop_assert!(!json.contains(is_harmful), "{json:?}");
        prop_assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
    }

    #[test]
    fn no_text_in_quotes_panics(text in "\"[\"\\\\xu0-9a-f]{0,20}\"?") {
        let _ = read(&text);
    }
}

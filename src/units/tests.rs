use super::*;
use proptest::prelude::*;

#[test]
fn sizes_are_binary_in_every_spelling() {
    let table: [(&str, u64); 12] = [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("64K", 65_536),
        ("64k", 65_536),
        ("1kB", 1024),
        ("1KiB", 1024),
        ("1M", 1 << 20),
        ("2GiB", 2 << 30),
        ("3tib", 3 << 40),
        ("007K", 7 << 10),
        ("18446744073709551615", u64::MAX),
    ];
    for (word, bytes) in table {
        assert_eq!(parse_size(word), Ok(bytes), "{word}");
    }
}

#[test]
fn what_is_not_a_size_is_refused() {
    for word in ["", "K", "-1", "+1", "1.5M", "1 M", "1X", "1KK", "1Ki", "1iB", "0x10", "1\u{661}"]
    {
        assert_eq!(parse_size(word), Err(UnitError::NotASize(word.to_owned())), "{word}");
    }
    for word in ["18446744073709551616", "16777216T", "99999999999999999999999G"] {
        assert_eq!(parse_size(word), Err(UnitError::SizeTooLarge(word.to_owned())), "{word}");
    }
}

#[test]
fn exact_sizes_use_the_largest_suffix_that_fits() {
    let table: [(u64, &str); 8] = [
        (0, "0"),
        (1000, "1000"),
        (1024, "1K"),
        (1536, "1536"),
        (1 << 20, "1M"),
        ((1 << 20) + 1024, "1025K"),
        (5 << 40, "5T"),
        (u64::MAX, "18446744073709551615"),
    ];
    for (bytes, text) in table {
        assert_eq!(format_size(bytes), text);
    }
}

#[test]
fn human_sizes_are_rounded_to_a_tenth_and_never_say_1024() {
    let table: [(u64, &str); 9] = [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (65_536, "64 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (3 << 19, "1.5 MiB"),
        (5 << 40, "5 TiB"),
        (u64::MAX, "16 EiB"),
    ];
    for (bytes, text) in table {
        assert_eq!(human_size(bytes), text);
    }
}

#[test]
fn seconds_are_decimal_and_never_negative() {
    assert_eq!(parse_seconds("0"), Ok(Duration::ZERO));
    assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
    assert_eq!(parse_seconds("0.000000001"), Ok(Duration::from_nanos(1)));
    for word in ["", "-1", "inf", "NaN", "1s", "1e400", "1e30", "one"] {
        assert_eq!(parse_seconds(word), Err(UnitError::NotSeconds(word.to_owned())), "{word}");
    }
}

#[test]
fn a_quoted_word_is_one_short_line() {
    assert_eq!(quote("a b"), "`a b`");
    assert_eq!(quote("a\nb\u{1b}"), "`a\\nb\\u{1b}`");
    assert_eq!(quote(&"x".repeat(100)), format!("`{}...`", "x".repeat(64)));
}

#[test]
fn the_nearest_word_is_near() {
    let known = ["willneed", "dontneed", "cold", "free"];
    assert_eq!(nearest("wilneed", known), Some("willneed"));
    assert_eq!(nearest("WILLNEDE", known), Some("willneed"));
    assert_eq!(nearest("colt", known), Some("cold"));
    assert_eq!(nearest("warm", known), None);
    assert_eq!(nearest("", known), None);
    assert_eq!(nearest(&"f".repeat(100_000), known), None);
}

proptest! {
    #[test]
    fn an_exact_size_parses_back(bytes: u64, shift in 0u32..64) {
        let bytes = bytes >> shift << (shift / 2);
        prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
    }

    #[test]
    fn no_word_panics(word in any::<String>()) {
        let _ = parse_size(&word);
        let _ = parse_seconds(&word);
        prop_assert!(!quote(&word).contains('\n'));
    }
}

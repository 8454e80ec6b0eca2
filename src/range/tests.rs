use super::*;
use proptest::prelude::*;

const PAGE: u64 = 4096;

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

#[test]
fn the_four_forms_and_the_dash_are_ranges() {
    let table = [
        ("-", RangeSpec::All),
        ("0-1M", RangeSpec::Span { start: 0, end: 1 << 20 }),
        ("5-5", RangeSpec::Span { start: 5, end: 5 }),
        ("64K+4k", RangeSpec::Length { start: 65_536, len: 4096 }),
        ("-2GiB", RangeSpec::UpTo { end: 2 << 30 }),
        ("1M-", RangeSpec::From { start: 1 << 20 }),
    ];
    for (word, spec) in table {
        assert_eq!(word.parse(), Ok(spec), "{word}");
    }
}

#[test]
fn what_is_not_a_range_is_refused_with_its_reason() {
    for word in ["", "12", "1M", "+4K", "4K+", "+", "name"] {
        let error = word.parse::<RangeSpec>().unwrap_err();
        assert_eq!(error, RangeError::Malformed { word: word.to_owned() });
    }
    for word in ["a-b", "0-1Q", "1--2", "1-2-3", "1+2+3", "0 -1", "-1-", "\u{e9}-1"] {
        let error = word.parse::<RangeSpec>().unwrap_err();
        assert!(matches!(error, RangeError::BadSize { .. }), "{word}: {error:?}");
    }
    assert_eq!("9-3".parse::<RangeSpec>(), Err(RangeError::Reversed { start: 9, end: 3 }));
}

#[test]
fn a_range_is_resolved_against_the_size() {
    let table = [
        ("-", 0, (0, 0)),
        ("-", 10, (0, 10)),
        ("0-10", 10, (0, 10)),
        ("10-10", 10, (10, 10)),
        ("4+6", 10, (4, 10)),
        ("-10", 10, (0, 10)),
        ("3-", 10, (3, 10)),
        ("10-", 10, (10, 10)),
        ("0-", 0, (0, 0)),
    ];
    for (word, size, (start, end)) in table {
        let spec: RangeSpec = word.parse().unwrap();
        assert_eq!(spec.resolve(size), Ok(range(start, end)), "{word} of {size}");
    }
}

#[test]
fn a_range_past_the_end_is_refused() {
    let far = format!("1+{}", u64::MAX);
    for word in ["0-11", "11-12", "5+6", "-11", "11-", "11-11", &far] {
        let spec: RangeSpec = word.parse().unwrap();
        let error = spec.resolve(10).unwrap_err();
        assert_eq!(error, RangeError::Outside { range: spec, size: 10 }, "{word}");
    }
    let error = RangeSpec::Span { start: 1 << 20, end: 2 << 20 }.resolve(65_536).unwrap_err();
    assert_eq!(error.to_string(), "the range 1M-2M is outside the file, which has 65536 bytes");
}

#[test]
fn a_reversed_span_made_by_hand_is_refused_too() {
    let spec = RangeSpec::Span { start: 2, end: 1 };
    assert_eq!(spec.resolve(10), Err(RangeError::Reversed { start: 2, end: 1 }));
    assert_eq!(ByteRange::new(2, 1), None);
}

#[test]
fn outward_takes_every_page_that_is_touched() {
    assert_eq!(range(1, 4097).outward(PAGE), range(0, 8192));
    assert_eq!(range(4096, 8192).outward(PAGE), range(4096, 8192));
    assert_eq!(range(5000, 5000).outward(PAGE), range(4096, 4096));
    assert_eq!(range(0, u64::MAX).outward(PAGE), range(0, u64::MAX));
    assert_eq!(range(0, u64::MAX).pages(PAGE), 1 << 52);
    assert_eq!(range(4095, 4097).pages(PAGE), 2);
    assert_eq!(range(7, 7).pages(PAGE), 0);
}

#[test]
fn inward_takes_only_whole_pages() {
    assert_eq!(range(1, 8192).inward(PAGE), range(4096, 8192));
    assert_eq!(range(0, 8191).inward(PAGE), range(0, 4096));
    assert!(range(1, 4096).inward(PAGE).is_empty());
    assert!(range(4097, 8191).inward(PAGE).is_empty());
    assert!(range(u64::MAX - 1, u64::MAX).inward(PAGE).is_empty());
}

#[test]
fn ranges_are_cut_to_a_length_and_to_each_other() {
    assert_eq!(range(5, 20).clamp_to(10), range(5, 10));
    assert_eq!(range(15, 20).clamp_to(10), range(10, 10));
    assert_eq!(range(0, 10).intersect(range(5, 20)), Some(range(5, 10)));
    assert_eq!(range(0, 5).intersect(range(5, 20)), None);
    assert_eq!(range(3, 3).intersect(range(0, 9)), None);
}

/// Numbers of every magnitude, and those beside the powers of two.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..100_000,
        (0u32..64, 0u64..3).prop_map(|(shift, add)| (1u64 << shift).wrapping_add(add)),
    ]
}

fn any_spec() -> impl Strategy<Value = RangeSpec> {
    prop_oneof![
        Just(RangeSpec::All),
        (number(), number()).prop_map(|(a, b)| RangeSpec::Span { start: a.min(b), end: a.max(b) }),
        (number(), number()).prop_map(|(start, len)| RangeSpec::Length { start, len }),
        number().prop_map(|end| RangeSpec::UpTo { end }),
        number().prop_map(|start| RangeSpec::From { start }),
    ]
}

proptest! {
    #[test]
    fn a_printed_range_parses_back(spec in any_spec()) {
        prop_assert_eq!(spec.to_string().parse(), Ok(spec));
    }

    #[test]
    fn a_resolved_range_lies_in_the_file(spec in any_spec(), size in number()) {
        if let Ok(range) = spec.resolve(size) {
            prop_assert!(range.start <= range.end && range.end <= size);
        }
    }

    #[test]
    fn rounding_holds_the_order_inward_self_outward(
        a in number(),
        b in number(),
        shift in 0u32..22,
    ) {
        let (range, page) = (range(a.min(b), a.max(b)), 1u64 << shift);
        let (inner, outer) = (range.inward(page), range.outward(page));
        prop_assert!(outer.start <= range.start && outer.end >= range.end || range.is_empty());
        prop_assert!(inner.is_empty() || inner.start >= range.start && inner.end <= range.end);
        prop_assert!(inner.start % page == 0 && inner.end % page == 0 && outer.start % page == 0);
        prop_assert!(outer.end % page == 0 || outer.end == u64::MAX);
        prop_assert!(inner.len() <= outer.len());
    }

    #[test]
    fn no_word_panics(word in "[-+0-9KMGTiBx ]{0,12}|\\PC{0,20}") {
        if let Ok(spec) = word.parse::<RangeSpec>() {
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }
}

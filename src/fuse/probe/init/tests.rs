use super::*;

/// A request with these words in its body.
fn request(opcode: u32, body: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[8..16].copy_from_slice(&2_u64.to_ne_bytes());
    body.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes
}

#[test]
fn both_halves_of_the_flags_are_read() {
    let body = [7, 45, 131_072, EXTENDED | 1 << 13 | 1 << 22, 1 << 5];
    let (offer, unique) = parse(&request(INIT, &body)).unwrap();
    assert_eq!((offer.major, offer.minor, offer.max_readahead, unique), (7, 45, 131_072, 2));
    assert_eq!(offer.names(), ["readdirplus", "max_pages", "passthrough"]);
}

#[test]
fn an_old_kernel_has_one_half_of_the_flags() {
    let (offer, _) = parse(&request(INIT, &[7, 31, 131_072, 1 << 12])).unwrap();
    assert_eq!(offer.names(), ["auto_inval_data"]);
    let bits = answer(&offer, 2, 1)[28..32].to_vec();
    assert_eq!(bits, [0; 4]);
}

#[test]
fn what_is_not_init_or_cut_short_is_refused() {
    assert_eq!(parse(&request(1, &[7, 45, 0, 0])), None);
    let whole = request(INIT, &[7, 45, 0, EXTENDED, 0]);
    for len in 0..whole.len() {
        assert_eq!(parse(&whole[..len]), None, "{len} bytes");
    }
}

#[test]
fn the_answer_has_the_length_that_it_states_and_the_depth() {
    let body = [7, 45, 131_072, EXTENDED, 1 << 5];
    let (offer, unique) = parse(&request(INIT, &body)).unwrap();
    let bytes = answer(&offer, unique, 2);
    assert_eq!(bytes.len(), ANSWER);
    assert_eq!(word(&bytes, 0), Some(ANSWER as u32));
    assert_eq!(bytes[8..16], 2_u64.to_ne_bytes());
    assert_eq!(word(&bytes, 16 + 28), Some(0));
    assert_eq!(word(&bytes, 16 + 32), Some(1 << 5), "flags2");
    assert_eq!(word(&bytes, 16 + 36), Some(2), "max_stack_depth");
}

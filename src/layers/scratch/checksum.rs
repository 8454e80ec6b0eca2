//! Checksum of `state.json`, by which every damage of the state is detected.

use serde::Serialize;
use serde_json::{Map, Value};

/// Member with the checksum.
const MEMBER: &str = "checksum";

/// All members of a state that was written before there were checksums.
const BEFORE: [&str; 14] = [
    "format",
    "version",
    "id",
    "created",
    "base",
    "marks",
    "kind",
    "max",
    "copy_up",
    "adopted",
    "in_order",
    "boot",
    "mount",
    "directory",
];

/// A state together with its checksum.
#[derive(Serialize)]
struct Sealed<'a, T> {
    #[serde(flatten)]
    state: &'a T,
    checksum: String,
}

/// Text of a state with its checksum.
///
/// # Errors
/// `state` does not serialize to a JSON object.
pub(super) fn sealed(state: &impl Serialize) -> serde_json::Result<String> {
    let members = serde_json::from_value(serde_json::to_value(state)?)?;
    let mut text = serde_json::to_string_pretty(&Sealed { state, checksum: of(&members) })?;
    text.push('\n');
    Ok(text)
}

/// Checks the checksum of a state. A state without one is valid if it has only members that were
/// written before there were checksums.
///
/// # Errors
/// The message for a damaged state.
pub(super) fn check(members: &Map<String, Value>) -> Result<(), String> {
    match members.get(MEMBER) {
        Some(said) if *said == Value::String(of(members)) => Ok(()),
        Some(_) => Err("it is damaged: its checksum is wrong".into()),
        None => match members.keys().find(|name| !BEFORE.contains(&name.as_str())) {
            Some(_) => Err("it is damaged: its checksum is missing".into()),
            None => Ok(()),
        },
    }
}

/// CRC-32 of all members but the checksum: of their JSON without blanks, in which the members of
/// each object are sorted by name.
fn of(members: &Map<String, Value>) -> String {
    let others: Map<String, Value> = members
        .iter()
        .filter(|(name, _)| *name != MEMBER)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    format!("{:08x}", crc32fast::hash(Value::Object(others).to_string().as_bytes()))
}

/// Updates the checksum of a state that a test has changed.
#[cfg(test)]
pub(in crate::layers) fn seal(state: &mut Value) {
    let members = state.as_object_mut().unwrap();
    let sum = of(members);
    members.insert(MEMBER.into(), sum.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_checksum_is_of_the_members_in_the_order_of_their_names() {
        let text =
            "{\"b\": {\"d\": null, \"c\": \"\u{e9}\\n\"}, \"a\": [1, -2, 18446744073709551615]}";
        let there = members(text);
        assert_eq!(of(&there), "9ef38280");
    }

    #[test]
    fn every_changed_byte_is_told_or_changes_nothing() {
        #[derive(Serialize)]
        struct State {
            format: &'static str,
            version: u32,
            created: u64,
            base: Vec<u8>,
            max: Option<u64>,
            in_order: bool,
        }
        let state = State {
            format: "mmapfs-scratch",
            version: 2,
            created: 1_700_000_000,
            base: vec![47, 255],
            max: None,
            in_order: true,
        };
        let text = sealed(&state).unwrap();
        let good = members(&text);
        assert_eq!(check(&good), Ok(()));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(found) = serde_json::from_slice::<Map<String, Value>>(&bytes) else {
                    continue;
                };
                assert!(check(&found).is_err() || found == good, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_state_of_before_has_no_checksum_and_no_other_member() {
        let before = r#"{"format": "mmapfs-scratch", "version": 2, "id": "x", "max": null}"#;
        assert_eq!(check(&members(before)), Ok(()));
        let damaged = before.replace("max", "mxx");
        assert!(check(&members(&damaged)).is_err());
    }
}

//! The checksum of `state.json`: a damaged state is told from a good one, whatever it says.

use serde::Serialize;
use serde_json::{Map, Value};

/// The member that it is.
const MEMBER: &str = "checksum";

/// The members of a state that was written before there were checksums.
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

/// The members of a state, and their checksum.
#[derive(Serialize)]
struct Sealed<'a, T> {
    #[serde(flatten)]
    state: &'a T,
    checksum: String,
}

/// The text of a state with its checksum.
///
/// # Errors
/// It is no JSON object.
pub(super) fn sealed(state: &impl Serialize) -> serde_json::Result<String> {
    let members = serde_json::from_value(serde_json::to_value(state)?)?;
    let mut text = serde_json::to_string_pretty(&Sealed { state, checksum: of(&members) })?;
    text.push('\n');
    Ok(text)
}

/// Says what is wrong with the checksum of these members, or that it is missing where a mmapfs of
/// before it cannot have written them.
///
/// # Errors
/// The state was damaged.
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

/// The CRC-32 of all members but the checksum, as JSON without blanks whose objects have their
/// members in the order of their names.
fn of(members: &Map<String, Value>) -> String {
    let others: Map<String, Value> = members
        .iter()
        .filter(|(name, _)| *name != MEMBER)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    format!("{:08x}", crc32fast::hash(Value::Object(others).to_string().as_bytes()))
}

/// Gives a state that a test has changed the checksum that it needs.
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

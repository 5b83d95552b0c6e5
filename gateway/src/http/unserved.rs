//! Whose readings are acknowledged and served to nobody: devices that the home knows and the chain does not, and what to do.

use record::ids::DeviceId;
use serde::Serialize;

use crate::directory::Directory;

/// Devices that are shown by name, at most.
const SHOWN_MAX: usize = 100;
/// What to do for them.
const ADVICE: &str = "what these devices measure is acknowledged and kept, and served to nobody until their keys are on the chain: print \
                      a code for each that came by the list (gateway claim new), and have the operator approve what gateway claim \
                      requests prints; see Devices in OPERATIONS.md";

/// Devices that the chain does not know.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Unserved {
    /// How many there are.
    devices: usize,
    /// The first of them, in the order of their names.
    named: Vec<DeviceId>,
    /// What to do; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Unserved {
    /// As of now; `None` before enough fog nodes have told.
    pub(super) fn of(directory: &Directory) -> Option<Self> {
        directory.not_on_chain().map(Self::from)
    }
}

impl From<Vec<DeviceId>> for Unserved {
    fn from(mut named: Vec<DeviceId>) -> Self {
        let devices = named.len();
        named.truncate(SHOWN_MAX);
        Self {
            devices,
            named,
            advice: (devices > 0).then_some(ADVICE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_named_all_are_counted_and_it_is_said_what_to_do() {
        let named = |n: usize| format!("scale-{n:04}").parse().expect("good");
        let many = Unserved::from((0..SHOWN_MAX + 7).map(named).collect::<Vec<_>>());
        assert_eq!((many.devices, many.named.len()), (SHOWN_MAX + 7, SHOWN_MAX));
        let text = serde_json::to_string(&many).expect("encodes");
        assert!(
            text.contains("scale-0000") && text.contains("gateway claim new"),
            "{text}"
        );
        let none = serde_json::to_string(&Unserved::from(Vec::new())).expect("encodes");
        assert_eq!(none, r#"{"devices":0,"named":[]}"#);
    }
}

//! What the chain says of this gateway's devices: believed when f + 1 fog nodes say the same, and kept on the disk.

use std::{collections::BTreeMap, path::Path};

use ledger::device::{Device, Moment, Roll};
use record::ids::DeviceId;
use serde::{Deserialize, Serialize};

use crate::{enrolment::DEVICES_MAX, kept};

/// The file in the data folder.
const FILE: &str = "devices.json";
/// More bytes than it has: ten thousand devices, each with some keys.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Since when this gateway is revoked.
    pub revoked: Option<Moment>,
    /// The devices that the chain knows at this gateway.
    pub devices: BTreeMap<DeviceId, Device>,
}

impl Standing {
    /// What was kept in the data folder; nothing before the first time.
    ///
    /// # Errors
    /// [`kept::Error`].
    pub fn load(folder: &Path) -> Result<Self, kept::Error> {
        Ok(kept::read(&folder.join(FILE), FILE_BYTES_MAX)?.unwrap_or_default())
    }

    /// Keeps it in the data folder.
    ///
    /// # Errors
    /// [`kept::Error`].
    pub fn keep(&self, folder: &Path) -> Result<(), kept::Error> {
        kept::replace(&folder.join(FILE), self)
    }

    /// Whether a word about a device is later than what is believed: nobody is brought back by an old word.
    fn is_older_than(&self, id: &DeviceId, device: &Device) -> bool {
        let known = self.devices.get(id);
        known.is_none_or(|known| known.changed() < device.changed())
    }
}

/// What each fog node said, as far as it is not believed yet.
#[derive(Debug)]
pub struct Words {
    said: Vec<Said>,
}

#[derive(Clone, Debug, Default)]
struct Said {
    revoked: Option<Moment>,
    devices: BTreeMap<DeviceId, Device>,
    /// It said too much, and was forgotten.
    is_forgotten: bool,
}

impl Words {
    /// The words of so many nodes.
    #[must_use]
    pub fn of(nodes: usize) -> Self {
        Self {
            said: vec![Said::default(); nodes],
        }
    }

    /// Hears a node, and gives what is believed by that: what `needed` nodes say in the same words, and is later than what is
    /// believed already. `None` if nothing changes.
    pub fn hear(&mut self, node: usize, roll: Roll, needed: usize, known: &Standing) -> Option<Standing> {
        let said = self.said.get_mut(node)?;
        said.revoked = roll.revoked;
        let news: Vec<_> = roll.devices.keys().cloned().collect();
        said.devices.extend(roll.devices);
        said.devices.retain(|id, device| known.is_older_than(id, device));
        if said.devices.len() > DEVICES_MAX {
            // So many that no other node has said: it is far ahead of the others, or makes them up. It has to say it again.
            said.devices.clear();
            said.is_forgotten = true;
        }
        let mut next = known.clone();
        for id in news {
            if let Some(device) = self.agreed(&id, needed) {
                next.devices.insert(id, device.clone());
            }
        }
        let revoked = roll.revoked.filter(|moment| {
            let same = |said: &&Said| said.revoked == Some(*moment);
            self.said.iter().filter(same).count() >= needed
        });
        next.revoked = next.revoked.or(revoked);
        if next == *known {
            return None;
        }
        for said in &mut self.said {
            said.devices.retain(|id, device| next.is_older_than(id, device));
        }
        Some(next)
    }

    /// Whether what a node said was forgotten since this was asked last: it has to be asked from the beginning again.
    pub fn has_forgotten(&mut self, node: usize) -> bool {
        let said = self.said.get_mut(node);
        said.is_some_and(|said| std::mem::take(&mut said.is_forgotten))
    }

    fn agreed(&self, id: &DeviceId, needed: usize) -> Option<&Device> {
        let words: Vec<_> = self.said.iter().filter_map(|said| said.devices.get(id)).collect();
        let same = |word: &&Device| words.iter().filter(|other| *other == word).count() >= needed;
        words.iter().copied().find(same)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ledger::block::Height;
    use record::signature::{PublicKey, SigningKey};
    use serde_json::json;

    /// A device as the chain would have it: enrolled at height 2, revoked at another.
    pub(crate) fn device(key: &PublicKey, revoked: Option<u64>) -> Device {
        let revoked = revoked.map(|height| Moment {
            height: Height(height),
            at_ms: 5,
        });
        let until = revoked.map(|moment| json!({"height": moment.height, "received_until_ms": u32::MAX}));
        let period = json!({"key": key, "from": {"height": 2, "at_ms": 1}, "until": until});
        let device = json!({"gateway": "home-1", "keys": [period], "revoked": revoked});
        serde_json::from_value(device).expect("a device")
    }

    pub(crate) fn cuff() -> DeviceId {
        "cuff-1".parse().expect("good")
    }

    /// What a node says that knows of this device alone.
    pub(crate) fn roll(device: &Device) -> Roll {
        Roll {
            through: device.changed(),
            revoked: None,
            devices: BTreeMap::from([(cuff(), device.clone())]),
        }
    }

    #[test]
    fn one_liar_is_not_believed_and_two_who_agree_are() {
        let key = SigningKey::random().public();
        let (enrolled, out) = (device(&key, None), device(&key, Some(7)));
        let other = device(&SigningKey::random().public(), Some(7));
        let (mut words, known) = (Words::of(4), Standing::default());
        assert_eq!(words.hear(0, roll(&enrolled), 2, &known), None);
        let known = words.hear(1, roll(&enrolled), 2, &known).expect("two");
        assert_eq!(known.devices[&cuff()], enrolled);
        assert_eq!(words.hear(3, roll(&other), 2, &known), None, "a liar");
        assert_eq!(words.hear(3, roll(&other), 2, &known), None, "again");
        assert_eq!(words.hear(0, roll(&out), 2, &known), None);
        let known = words.hear(1, roll(&out), 2, &known).expect("two");
        assert_eq!(known.devices[&cuff()], out);
        for node in 0..4 {
            assert_eq!(words.hear(node, roll(&enrolled), 2, &known), None, "an old word");
        }
    }

    #[test]
    fn who_tells_without_an_end_is_not_kept_in_memory() {
        let one = device(&SigningKey::random().public(), None);
        let mut words = Words::of(4);
        for batch in 0..4 {
            let named = |n: usize| (format!("d-{batch}-{n}").parse().expect("good"), one.clone());
            assert!(!words.has_forgotten(0), "said once");
            let roll = Roll {
                through: Height(2),
                revoked: None,
                devices: (0..DEVICES_MAX / 2 + 1).map(named).collect(),
            };
            assert_eq!(words.hear(0, roll, 2, &Standing::default()), None);
            assert!(words.said[0].devices.len() <= DEVICES_MAX);
            assert_eq!(words.has_forgotten(0), batch % 2 == 1, "every other batch is too much");
        }
    }

    #[test]
    fn what_was_learned_is_there_after_a_restart_and_damage_is_said() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(Standing::load(folder.path()).expect("nothing"), Standing::default());
        let standing = Standing {
            revoked: None,
            devices: BTreeMap::from([(cuff(), device(&SigningKey::random().public(), Some(7)))]),
        };
        standing.keep(folder.path()).expect("keeps");
        assert_eq!(Standing::load(folder.path()).expect("reads"), standing);
        std::fs::write(folder.path().join(FILE), "{").expect("writes");
        assert!(Standing::load(folder.path()).is_err());
    }
}

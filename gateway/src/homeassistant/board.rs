//! What is to stand on Home Assistant's broker, beside what stands there: the difference is what has to be published.

use std::collections::BTreeMap;

use record::ids::{DeviceId, GatewayId};

use super::discovery::Topics;
use crate::newest::{Newest, Shown};

/// The words of availability that Home Assistant expects if it is told no others.
pub(super) const ONLINE: &str = "online";
/// The same.
pub(super) const OFFLINE: &str = "offline";
/// Topics of ours that are remembered to be there, at most: with more something else writes there.
const THERE_MAX: usize = 10_000;

/// Something to publish, retained; an empty text takes a topic away.
pub(super) type Change = (String, String);

/// What stands on the broker, as far as it is known, and what is to stand there.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) topics: Topics,
    pub(super) newest: Newest,
    /// Texts by topic; values are in it, so that nothing shows it.
    there: There,
}

#[derive(Default)]
struct There(BTreeMap<String, String>);

impl std::fmt::Debug for There {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "There({})", self.0.len())
    }
}

impl Board {
    pub(super) fn of(gateway: &GatewayId, prefix: &str, newest: Newest) -> Self {
        Self {
            topics: Topics::of(prefix, gateway),
            newest,
            there: There::default(),
        }
    }

    /// A new connection: nothing is known of what is there.
    pub(super) fn forget(&mut self) {
        self.there.0.clear();
    }

    /// The broker says what stands under a topic of ours. A value that was shown is not to be followed by an older one, also
    /// over a restart; one of the future would hold up all others.
    pub(super) fn found(&mut self, topic: &str, text: &[u8], now_ms: i64) {
        let Ok(text) = std::str::from_utf8(text) else {
            return;
        };
        if !topic.starts_with(&self.topics.own()) || self.there.0.len() >= THERE_MAX {
            return;
        }
        if text.is_empty() {
            self.there.0.remove(topic);
            return;
        }
        self.there.0.insert(topic.to_owned(), text.to_owned());
        if let Some(of) = self.topics.state_of(topic)
            && let Ok(shown) = serde_json::from_str::<Shown>(text)
            && shown.measured_ms <= now_ms
        {
            self.newest.learn(of, shown);
        }
    }

    /// Home Assistant has started: it is told everything again, though it is retained.
    pub(super) fn tell_all_again(&mut self, is_there: impl Fn(&DeviceId) -> Option<bool>) {
        let due = self.due(is_there);
        self.there.0.retain(|topic, _| !due.contains_key(topic));
    }

    /// What has to be published: what differs, and what is not to be there any more. `is_there` says of a device whether it can
    /// be reached, and is `None` for one that is not to be shown.
    pub(super) fn changes(&self, is_there: impl Fn(&DeviceId) -> Option<bool>) -> Vec<Change> {
        let due = self.due(is_there);
        let differs = |(topic, text): &(&String, &String)| self.there.0.get(*topic) != Some(text);
        let published = due
            .iter()
            .filter(differs)
            .map(|(topic, text)| (topic.clone(), text.clone()));
        let gone = self.there.0.keys().filter(|topic| !due.contains_key(*topic));
        let gone = gone.map(|topic| (topic.clone(), String::new()));
        // A sensor is told before its value; what goes away goes first.
        let mut changes: Vec<_> = gone.chain(published).collect();
        changes.sort_by_key(|(topic, text)| (!text.is_empty(), topic.ends_with("/state")));
        changes
    }

    /// A change was handed to the broker.
    pub(super) fn published(&mut self, (topic, text): Change) {
        if text.is_empty() {
            self.there.0.remove(&topic);
        } else {
            self.there.0.insert(topic, text);
        }
    }

    fn due(&self, is_there: impl Fn(&DeviceId) -> Option<bool>) -> BTreeMap<String, String> {
        let mut due = BTreeMap::from([(self.topics.gateway(), ONLINE.to_owned())]);
        for ((device, code), shown) in self.newest.all() {
            let Some(is_there) = is_there(&device) else {
                continue;
            };
            let Some(config) = self.topics.discovery(&device, code, &shown) else {
                continue;
            };
            let availability = if is_there { ONLINE } else { OFFLINE };
            due.insert(self.topics.device(&device), availability.to_owned());
            due.insert(self.topics.config(&device, code), config.to_string());
            let state = serde_json::to_string(&shown).expect("plain fields");
            due.insert(self.topics.state(&device, code), state);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{ids::BootId, reading::TimeQuality};

    fn shown(seq: u64, value: &str) -> Shown {
        Shown {
            value: Some(value.to_owned()),
            unit: "%".to_owned(),
            measured: "1970-01-01T00:16:40Z".to_owned(),
            measured_ms: 1_000_000 + i64::try_from(seq).expect("small"),
            time_quality: TimeQuality::Synced,
            questionable: false,
            boot: BootId { counter: 1, random: 1 },
            seq,
        }
    }

    fn board() -> (Board, DeviceId) {
        let device: DeviceId = "oximeter-1".parse().expect("good");
        let newest = Newest::of([device.clone()].into());
        (
            Board::of(&"home-1".parse().expect("good"), "homeassistant", newest),
            device,
        )
    }

    fn settle(board: &mut Board, is_there: impl Fn(&DeviceId) -> Option<bool>) -> Vec<Change> {
        let changes = board.changes(is_there);
        changes.iter().cloned().for_each(|change| board.published(change));
        changes
    }

    #[test]
    fn only_what_differs_is_published_and_a_sensor_before_its_value() {
        let (mut board, device) = board();
        assert_eq!(settle(&mut board, |_| Some(true)).len(), 1, "the gateway is there");
        board.newest.learn((device.clone(), "2708-6"), shown(5, "97"));
        let first = settle(&mut board, |_| Some(true));
        assert_eq!(first.len(), 3);
        assert!(first[2].0.ends_with("oximeter-1_2708-6/state") && first[2].1.contains(r#""value":"97""#));
        assert!(settle(&mut board, |_| Some(true)).is_empty());
        board.newest.learn((device.clone(), "2708-6"), shown(4, "91"));
        assert!(settle(&mut board, |_| Some(true)).is_empty(), "an older one");
        let gone = settle(&mut board, |_| Some(false));
        assert_eq!(gone, [(board.topics.device(&device), OFFLINE.to_owned())]);
        board.tell_all_again(|_| Some(false));
        assert_eq!(settle(&mut board, |_| Some(false)).len(), 4);
    }

    #[test]
    fn what_may_not_be_shown_any_more_is_taken_away_also_from_before_a_restart() {
        let (mut board, device) = board();
        board.newest.learn((device.clone(), "2708-6"), shown(5, "97"));
        settle(&mut board, |_| Some(true));
        // Revoked.
        let gone = settle(&mut board, |_| None);
        assert_eq!(gone.len(), 3);
        assert!(gone.iter().all(|(_, text)| text.is_empty()));
        // Another start knows nothing, and finds what an earlier one had shown of somebody who wants it no more.
        let (mut board, _) = self::board();
        let before = board.topics.own() + "scale-1_29463-7";
        for end in ["config", "state"] {
            board.found(&format!("{before}/{end}"), b"{}", 9_000_000);
        }
        board.found("homeassistant/sensor/somebody/else/config", b"{}", 9_000_000);
        let gone: Vec<_> = settle(&mut board, |_| Some(true))
            .into_iter()
            .filter(|(_, text)| text.is_empty())
            .collect();
        assert_eq!(gone.len(), 2, "nobody else's is touched");
    }

    #[test]
    fn a_restart_does_not_show_an_older_value_than_before() {
        let (mut board, device) = board();
        let state = board.topics.state(&device, "2708-6");
        let text = serde_json::to_string(&shown(5, "97")).expect("plain");
        board.found(&state, text.as_bytes(), 9_000_000);
        board.newest.learn((device.clone(), "2708-6"), shown(3, "90"));
        let changes = settle(&mut board, |_| Some(true));
        assert!(changes.iter().all(|(topic, _)| *topic != state), "it stands there");
        // What nobody can have measured yet is written anew by the next value.
        let (mut board, _) = self::board();
        board.found(&state, text.as_bytes(), 1_000_000);
        board.newest.learn((device, "2708-6"), shown(3, "90"));
        let changes = settle(&mut board, |_| Some(true));
        assert!(
            changes
                .iter()
                .any(|(topic, text)| *topic == state && text.contains("90"))
        );
    }
}

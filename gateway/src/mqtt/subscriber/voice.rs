//! What the gateway says through an outside broker: how far each device's readings are durable, why a message was not believed,
//! and what became of a claim. One task says it for all sessions, so that no older word goes after a newer one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    time::Duration,
};

use record::{
    ids::{DeviceId, GatewayId},
    topic::{Channel, Topic},
};
use rumqttc::{AsyncClient, PublishOptions, PublishProperties};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::dialer::State;
use crate::{mqtt::notice::Notice, outbox::Durable, outbox::Progress};

/// How often cumulative acknowledgements are published; several readings of a device share one. They go with QoS 0, so that
/// nothing of ours is ever under way in the sessions: each covers those before it, and all are published again at a new
/// connection.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);
/// Words that wait to be said, at most; whoever has one waits then.
const WORDS_MAX: usize = 1_024;

/// Something to say.
enum Word {
    /// So far is a device, as of a verdict of the outbox.
    Durable(DeviceId, u64, Progress),
    /// A text under a topic, once, and for how many seconds it is of use; none: for ever.
    Text(String, String, Option<NonZeroU32>),
}

/// Hands over what is to be said.
#[derive(Clone)]
pub struct Voice {
    gateway: GatewayId,
    words: mpsc::Sender<Word>,
}

impl fmt::Debug for Voice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Voice")
    }
}

impl Voice {
    /// A voice, and who speaks for it over the first of these sessions that is connected.
    pub(super) fn of(gateway: GatewayId, sessions: Vec<(AsyncClient, watch::Receiver<State>)>) -> (Self, Speaker) {
        let (words, inbox) = mpsc::channel(WORDS_MAX);
        let speaker = Speaker {
            gateway: gateway.clone(),
            sessions,
            inbox,
            progress: BTreeMap::new(),
            untold: BTreeSet::new(),
            over: None,
        };
        (Self { gateway, words }, speaker)
    }

    /// What is durable now.
    pub(super) async fn acknowledge(&self, device: DeviceId, durable: &Durable) {
        if let Some(progress) = durable.progress() {
            let word = Word::Durable(device, durable.order(), progress.clone());
            // Nobody speaks any more while the gateway stops.
            let _unsaid = self.words.send(word).await;
        }
    }

    /// Why a message is not believed.
    pub(super) async fn tell(&self, device: DeviceId, notice: &Notice<'_>) {
        let topic = Topic {
            device,
            channel: Channel::Error,
        };
        self.say(topic.name(&self.gateway), notice.text()).await;
    }

    /// A text under a topic.
    pub(super) async fn say(&self, topic: String, text: String) {
        let _unsaid = self.words.send(Word::Text(topic, text, None)).await;
    }

    /// Asks a device something; what does not get through is asked again.
    pub(in crate::mqtt) fn ask(&self, topic: String, text: String, expiry_s: NonZeroU32) {
        if self.words.try_send(Word::Text(topic, text, Some(expiry_s))).is_err() {
            tracing::debug!("a question could not be published: it is asked again");
        }
    }
}

/// Says it.
pub(super) struct Speaker {
    gateway: GatewayId,
    sessions: Vec<(AsyncClient, watch::Receiver<State>)>,
    inbox: mpsc::Receiver<Word>,
    /// By the verdict that it is as of.
    progress: BTreeMap<DeviceId, (u64, Progress)>,
    /// Devices whose progress was not yet published over the connection below.
    untold: BTreeSet<DeviceId>,
    /// The session and its connection over which it spoke last.
    over: Option<(usize, u64)>,
}

impl Speaker {
    pub(super) async fn run(mut self) {
        let mut acknowledge = interval(ACKNOWLEDGE_EVERY);
        acknowledge.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(word) = self.inbox.recv() => match word {
                    Word::Durable(device, order, progress) => self.note(device, order, progress),
                    Word::Text(topic, text, expiry_s) => self.say(topic, text, expiry_s),
                },
                _ = acknowledge.tick() => self.acknowledge(),
            }
        }
    }

    /// Sessions settle side by side: what was said by the outbox before something that is known already is old.
    fn note(&mut self, device: DeviceId, order: u64, progress: Progress) {
        if self.progress.get(&device).is_some_and(|(known, _)| *known > order) {
            return;
        }
        self.untold.insert(device.clone());
        self.progress.insert(device, (order, progress));
    }

    /// The session to speak over.
    fn session(&self) -> Option<(usize, AsyncClient, State)> {
        let states = self.sessions.iter().enumerate();
        let mut connected = states.map(|(index, (client, state))| (index, client.clone(), state.borrow().clone()));
        connected.find(|(_, _, state)| state.is_connected)
    }

    /// Says what is durable; what does not fit in the queue now is covered by the next, which is cumulative.
    fn acknowledge(&mut self) {
        let Some((index, client, state)) = self.session() else {
            return;
        };
        let over = Some((index, state.connection));
        if self.over != over {
            self.over = over;
            self.untold = self.progress.keys().cloned().collect();
        }
        let options = PublishOptions::at_most_once().retain(state.retains);
        let (gateway, progress) = (&self.gateway, &self.progress);
        self.untold.retain(|device| {
            let topic = Topic {
                device: device.clone(),
                channel: Channel::Ack,
            };
            let text = serde_json::to_string(&progress[device].1).expect("plain fields");
            let sent = client.try_publish(topic.name(gateway), text, options.clone());
            sent.is_err()
        });
    }

    fn say(&self, topic: String, text: String, expiry_s: Option<NonZeroU32>) {
        let mut options = PublishOptions::at_most_once();
        if let Some(expiry_s) = expiry_s {
            options = options.properties(PublishProperties {
                message_expiry_interval: Some(expiry_s.get()),
                ..PublishProperties::default()
            });
        }
        let said = self
            .session()
            .map(|(_, client, _)| client.try_publish(topic, text, options));
        if !matches!(said, Some(Ok(()))) {
            tracing::debug!("a reason, an answer or a question could not be published");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::ids::BootId;

    #[test]
    fn an_older_word_of_another_session_does_not_undo_a_newer_one() {
        let (_voice, mut speaker) = Voice::of("home-1".parse().expect("good"), Vec::new());
        let device: DeviceId = "scale-1".parse().expect("good");
        let upto = |upto_seq| Progress {
            boot: BootId { counter: 1, random: 2 },
            upto_seq,
            high_seq: upto_seq,
            missing: Vec::new(),
        };
        speaker.note(device.clone(), 7, upto(3));
        speaker.note(device.clone(), 5, upto(2));
        assert_eq!(speaker.progress[&device], (7, upto(3)));
        speaker.note(device.clone(), 8, upto(4));
        assert_eq!(speaker.progress[&device], (8, upto(4)));
        // Nobody is connected: it is still to be said.
        speaker.acknowledge();
        assert!(speaker.untold.contains(&device));
    }
}

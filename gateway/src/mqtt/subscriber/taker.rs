//! Hands messages to the sink, acknowledges to the broker what is durable, and tells each device by cumulative acknowledgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    future,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesOrdered};
use record::{
    ids::{DeviceId, ReadingId},
    topic::{Channel, Topic},
};
use rumqttc::{AsyncClient, Publish, PublishOptions};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{PAUSE, dialer::State, jittered};
use crate::{
    intake::Intake,
    mqtt::{
        notice::Notice,
        presence::{Arrival, Presence},
    },
    outbox::{NotTaken, Progress, Verdict, Way},
};

/// How often cumulative acknowledgements are published; several readings of a device share one. They go with QoS 0, so that
/// nothing of ours is ever under way in the session: each covers those before it, and all are published again at a new
/// connection.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);

/// Takes messages in their order.
pub(super) struct Taker {
    client: AsyncClient,
    intake: Intake,
    presence: Presence,
    link: watch::Receiver<State>,
    progress: BTreeMap<DeviceId, Progress>,
    /// Devices whose progress was not yet published on the connection of this number.
    untold: (u64, BTreeSet<DeviceId>),
}

/// A message, and what became of it.
struct Taken {
    connection: u64,
    message: Publish,
    reading: Option<ReadingId>,
    /// Absent for a state, which is not kept.
    verdict: Option<Verdict>,
}

impl Taker {
    pub(super) fn of(client: AsyncClient, intake: Intake, presence: Presence, link: watch::Receiver<State>) -> Self {
        Self {
            client,
            intake,
            presence,
            link,
            progress: BTreeMap::new(),
            untold: (0, BTreeSet::new()),
        }
    }

    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<(u64, Publish)>, limit: usize) {
        let mut taking = FuturesOrdered::new();
        let mut acknowledge = interval(ACKNOWLEDGE_EVERY);
        acknowledge.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((connection, message)) = messages.recv(), if taking.len() < limit => {
                    taking.push_back(take((self.intake.clone(), self.link.clone()), connection, message));
                }
                Some(taken) = taking.next() => {
                    if let Some(taken) = taken {
                        self.settle(taken).await;
                    }
                }
                _ = acknowledge.tick() => self.acknowledge(),
            }
        }
    }

    async fn settle(&mut self, taken: Taken) {
        // Packet ids start anew with a connection: an old one might name a message that is not durable.
        let is_current = {
            let link = self.link.borrow();
            link.is_connected && link.connection == taken.connection
        };
        if is_current && self.client.ack(&taken.message).await.is_err() {
            return;
        }
        let name = String::from_utf8_lossy(&taken.message.topic);
        let Ok(Topic { device, .. }) = Topic::parse(self.intake.gateway(), &name) else {
            return;
        };
        let durable = match taken.verdict {
            None => {
                let arrival = if taken.message.retain {
                    Arrival::Kept
                } else {
                    Arrival::Fresh(Way::Relayed)
                };
                return self.presence.stated(&device, &taken.message.payload, arrival);
            }
            Some(Verdict::Spooled(durable) | Verdict::Duplicate(durable)) => {
                self.presence.heard(&device);
                durable
            }
            Some(Verdict::Quarantined(durable, refusal)) => {
                let notice = Notice::of(&refusal, taken.reading.as_ref(), &taken.message.payload);
                self.tell(&device, &notice);
                durable
            }
        };
        if let Some(progress) = durable.progress() {
            self.untold.1.insert(device.clone());
            self.progress.insert(device, progress.clone());
        }
    }

    /// Says what is durable; what does not fit in the queue now is covered by the next, which is cumulative.
    fn acknowledge(&mut self) {
        let (gateway, state) = (self.intake.gateway(), self.link.borrow().clone());
        if !state.is_connected {
            return;
        }
        if self.untold.0 != state.connection {
            self.untold = (state.connection, self.progress.keys().cloned().collect());
        }
        let options = PublishOptions::at_most_once().retain(state.retains);
        self.untold.1.retain(|device| {
            let topic = Topic {
                device: device.clone(),
                channel: Channel::Ack,
            };
            let text = serde_json::to_string(&self.progress[device]).expect("plain fields");
            self.client
                .try_publish(topic.name(gateway), text, options.clone())
                .is_err()
        });
    }

    fn tell(&self, device: &DeviceId, notice: &Notice<'_>) {
        let topic = Topic {
            device: device.clone(),
            channel: Channel::Error,
        };
        let topic = topic.name(self.intake.gateway());
        let sent = self
            .client
            .try_publish(topic, notice.text(), PublishOptions::at_most_once());
        if sent.is_err() {
            tracing::debug!("the reason could not be published");
        }
    }
}

/// Offers a message to the sink until it is durable: the broker waits for its acknowledgement and stops sending meanwhile.
/// `None` if another connection was made before that: it brings the message again, and may use its packet id for another.
async fn take(
    (intake, mut link): (Intake, watch::Receiver<State>),
    connection: u64,
    message: Publish,
) -> Option<Taken> {
    let mut pause = PAUSE.0;
    let name = String::from_utf8_lossy(&message.topic).into_owned();
    let is_state = Topic::parse(intake.gateway(), &name).is_ok_and(|topic| topic.channel == Channel::State);
    let (reading, verdict) = loop {
        if link.borrow_and_update().connection != connection {
            return None;
        }
        if is_state {
            break (None, None);
        }
        match intake.receive(&name, &message.payload).await {
            (reading, Ok(verdict)) => break (reading, Some(verdict)),
            (_, Err(NotTaken::Stopping)) => future::pending().await,
            (_, Err(NotTaken::Full | NotTaken::Busy)) => {
                // Another connection is noticed at once: what waits here would keep what it brings from being taken.
                tokio::select! {
                    () = sleep(jittered(pause)) => {}
                    _ = link.changed() => {}
                }
            }
        }
        pause = (pause * 2).min(PAUSE.1);
    };
    Some(Taken {
        connection,
        message,
        reading,
        verdict,
    })
}

//! Hands the messages of one session to the sink, and acknowledges to the broker what is durable.
//!
//! A broker's PUBACK to a device came before and says nothing, so the gateway cannot refuse a device that is too fast as the
//! embedded broker does. What is above the device's rate is not taken: it is acknowledged to the broker, so that it keeps no
//! place from others, and no `ack` of the gateway covers it, so that its device has it still.

use std::{future, sync::Arc};

use futures::{StreamExt as _, stream::FuturesOrdered};
use record::{ids::ReadingId, topic::Topic};
use rumqttc::{AsyncClient, Publish};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{PAUSE, dialer::State, jittered, voice::Voice};
use crate::{
    intake::Intake,
    mqtt::{
        notice::Notice,
        presence::{Arrival, Presence},
        rate::Rates,
    },
    outbox::{NotTaken, Verdict, Way, now_ms},
};

/// What the takers of all sessions share.
pub(super) struct Sink {
    pub(super) intake: Intake,
    pub(super) presence: Presence,
    pub(super) rates: Rates,
    pub(super) links: Vec<watch::Receiver<State>>,
    pub(super) voice: Voice,
}

impl Sink {
    /// Whether a device may have one more message taken now. All names that are not enrolled share one rate: whoever invents them
    /// gets no more by that.
    fn allows(&self, topic: Option<&Topic>) -> bool {
        let connections = self.links.iter().map(|link| link.borrow().connection).sum();
        match topic {
            Some(topic) if self.intake.knows(&topic.device) => self.rates.take_over(&Rates::name(topic), connections),
            _ => self.rates.take("user:unknown"),
        }
    }
}

/// Takes messages in their order.
pub(super) struct Taker {
    pub(super) client: AsyncClient,
    pub(super) link: watch::Receiver<State>,
    pub(super) sink: Arc<Sink>,
}

/// A message, and what became of it.
struct Taken {
    connection: u64,
    message: Publish,
    fate: Fate,
}

/// What became of a message that may be acknowledged to the broker.
enum Fate {
    Kept(Option<ReadingId>, Verdict),
    /// Of a device that may say whether it is there.
    State,
    /// Its device sends it again.
    TooFast,
}

impl Taker {
    pub(super) async fn run(self, mut messages: mpsc::Receiver<(u64, Publish)>, limit: usize) {
        let mut taking = FuturesOrdered::new();
        loop {
            tokio::select! {
                Some((connection, message)) = messages.recv(), if taking.len() < limit => {
                    taking.push_back(take((Arc::clone(&self.sink), self.link.clone()), connection, message));
                }
                Some(taken) = taking.next() => {
                    if let Some(taken) = taken {
                        self.settle(taken).await;
                    }
                }
            }
        }
    }

    async fn settle(&self, taken: Taken) {
        if !acknowledge((&self.client, &self.link), taken.connection, &taken.message).await {
            return;
        }
        let (sink, name) = (&self.sink, String::from_utf8_lossy(&taken.message.topic));
        let Ok(Topic { device, .. }) = Topic::parse(sink.intake.gateway(), &name) else {
            return;
        };
        match taken.fate {
            Fate::TooFast => {}
            Fate::State => {
                let arrival = if taken.message.retain {
                    Arrival::Kept
                } else {
                    Arrival::Fresh(Way::Relayed)
                };
                let payload = &taken.message.payload;
                if let Some(refusal) = sink.presence.says(&device, payload, arrival) {
                    sink.voice.tell(device, &Notice::of(&refusal, None, payload)).await;
                }
            }
            Fate::Kept(_, Verdict::Spooled(durable) | Verdict::Duplicate(durable)) => {
                sink.presence.heard(&device);
                sink.voice.acknowledge(device, &durable).await;
            }
            Fate::Kept(reading, Verdict::Quarantined(durable, refusal)) => {
                let notice = Notice::of(&refusal, reading.as_ref(), &taken.message.payload);
                sink.voice.tell(device.clone(), &notice).await;
                sink.voice.acknowledge(device, &durable).await;
            }
        }
    }
}

/// Acknowledges a message to the broker, unless another connection was made: packet ids start anew with it, and an old one might
/// name a message that is not durable. False if the client has ended.
pub(super) async fn acknowledge(
    (client, link): (&AsyncClient, &watch::Receiver<State>),
    connection: u64,
    message: &Publish,
) -> bool {
    let is_current = {
        let link = link.borrow();
        link.is_connected && link.connection == connection
    };
    !is_current || client.ack(message).await.is_ok()
}

/// Offers a message to the sink until it is durable: the broker waits for its acknowledgement and stops sending meanwhile.
/// `None` if another connection was made before that: it brings the message again, and may use its packet id for another.
async fn take(
    (sink, mut link): (Arc<Sink>, watch::Receiver<State>),
    connection: u64,
    message: Publish,
) -> Option<Taken> {
    // When it came, however often it has to be offered: what waited says nothing of its device's counter any more.
    let received_ms = now_ms();
    let mut pause = PAUSE.0;
    let name = String::from_utf8_lossy(&message.topic).into_owned();
    let topic = Topic::parse(sink.intake.gateway(), &name);
    let fate = if !sink.allows(topic.as_ref().ok()) {
        metrics::counter!("gateway_mqtt_refused_total", "what" => "rate").increment(1);
        Fate::TooFast
    } else if topic
        .as_ref()
        .is_ok_and(|topic| Presence::is_state(topic, &message.payload))
    {
        Fate::State
    } else {
        loop {
            if link.borrow_and_update().connection != connection {
                return None;
            }
            match sink.intake.receive_at(&name, &message.payload, received_ms).await {
                (reading, Ok(verdict)) => break Fate::Kept(reading, verdict),
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
        }
    };
    Some(Taken {
        connection,
        message,
        fate,
    })
}

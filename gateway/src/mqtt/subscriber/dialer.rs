//! Keeps the connection to the outside broker and its subscriptions, and passes messages on; it never waits for the sink.

use std::{sync::Arc, time::Duration};

use rumqttc::{
    AsyncClient, ConnAck, ConnectionError, DisconnectReasonCode, Event, EventLoop, Packet, Publish, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{PAUSE, jittered, lane::Lane};

/// The broker must answer a SUBSCRIBE within this time; else it is dialled again.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Refused filters are asked for again after this time: the operator may have changed the broker's rights meanwhile.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(60);

/// A connection that ends sooner was no success: the next one is as long in coming as after a refusal.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// So many of them in a row are no chance: somebody else has this session's name. Mosquitto hangs up then without a word.
const SHORT_LIVES_MAX: u32 = 5;

/// How the link to the broker is, and which connection it is (an acknowledgement belongs to one connection only).
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) is_connected: bool,
    pub(super) connection: u64,
    /// Whether the broker retains messages.
    pub(super) retains: bool,
    subscription: Subscription,
}

/// How far the subscriptions are.
#[derive(Clone, Debug, Default)]
enum Subscription {
    /// Not asked for, or not answered by this time.
    #[default]
    None,
    Asked(Instant),
    /// Every filter was granted, with QoS 1.
    Granted,
    /// The broker refuses these filters.
    Refused(Instant, Arc<[String]>),
}

impl State {
    /// Whether devices are heard.
    pub(super) const fn is_up(&self) -> bool {
        self.is_connected && matches!(self.subscription, Subscription::Granted)
    }

    /// A word for the status.
    pub(super) const fn word(&self) -> &'static str {
        match self.subscription {
            _ if !self.is_connected => "down",
            Subscription::None | Subscription::Asked(_) => "subscribing",
            Subscription::Granted => "up",
            Subscription::Refused(..) => "refused",
        }
    }

    /// The filters that the broker refuses.
    pub(super) fn refused(&self) -> &[String] {
        match &self.subscription {
            Subscription::Refused(_, filters) => filters,
            _ => &[],
        }
    }

    /// When something must be done about the subscriptions, whatever the broker says.
    const fn due(&self) -> Option<Instant> {
        match self.subscription {
            Subscription::Asked(at) | Subscription::Refused(at, _) => Some(at),
            Subscription::None | Subscription::Granted => None,
        }
    }
}

/// How long connections lasted, and how long to wait for the next one.
struct Lives {
    began: Option<Instant>,
    /// Connections in a row that ended soon.
    short: u32,
    pause: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        Self {
            began: None,
            short: 0,
            pause: PAUSE.0,
        }
    }
}

impl Lives {
    /// The connection is over, if there was one; how many in a row have ended soon, this one among them, or 0.
    fn ended(&mut self, now: Instant) -> u32 {
        let Some(began) = self.began.take() else { return 0 };
        if now.saturating_duration_since(began) >= STABLE_AFTER {
            (self.short, self.pause) = (0, PAUSE.0);
            return 0;
        }
        self.short += 1;
        self.short
    }
}

/// Keeps the connection of one session.
pub(super) struct Dialer {
    pub(super) lane: Lane,
    pub(super) client: AsyncClient,
    pub(super) filters: Vec<SubscribeFilter>,
    pub(super) sender: mpsc::Sender<(u64, Publish)>,
    pub(super) state: watch::Sender<State>,
}

impl Dialer {
    pub(super) async fn run(self, mut events: EventLoop) {
        let mut lives = Lives::default();
        loop {
            let polled = self.poll(&mut events).await;
            match polled {
                Some(Ok(Event::Incoming(Packet::ConnAck(ack)))) => {
                    lives.began = Some(Instant::now());
                    self.connected(&ack);
                }
                Some(Ok(Event::Incoming(Packet::SubAck(ack)))) => self.answered(&ack.return_codes),
                Some(Ok(Event::Incoming(Packet::Publish(message)))) => self.pass_on(message),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    if lives.ended(Instant::now()) == SHORT_LIVES_MAX || is_taken_over(&error) {
                        self.taken_over();
                    }
                    self.lost(&error.to_string());
                    sleep(jittered(lives.pause)).await;
                    lives.pause = (lives.pause * 2).min(PAUSE.1);
                }
                None => {
                    events.clean();
                    self.lost("it does not answer a subscription");
                }
            }
        }
    }

    /// The next event; `None` if the broker does not answer the subscription in time.
    async fn poll(&self, events: &mut EventLoop) -> Option<Result<Event, ConnectionError>> {
        // The same poll goes on over a new SUBSCRIBE: one that is dropped might take a message with it.
        let mut polled = std::pin::pin!(events.poll());
        loop {
            let due = self.state.borrow().due();
            tokio::select! {
                event = &mut polled => return Some(event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if matches!(self.state.borrow().subscription, Subscription::Asked(_)) {
                        return None;
                    }
                    self.subscribe();
                }
            }
        }
    }

    fn connected(&self, ack: &ConnAck) {
        let properties = ack.properties.as_ref();
        let retain = properties.and_then(|properties| properties.retain_available);
        self.state.send_modify(|state| {
            *state = State {
                is_connected: true,
                connection: state.connection + 1,
                retains: retain != Some(0),
                // Whether it was refused before is still to be known: a refusal is logged once.
                subscription: std::mem::take(&mut state.subscription),
            };
        });
        let lane = self.lane.as_str();
        tracing::info!(lane, session_present = ack.session_present, "connected to the broker");
        self.subscribe();
    }

    /// Asks for all filters, also in a session that exists: nobody knows whether it ever had them.
    fn subscribe(&self) {
        if let Err(error) = self.client.try_subscribe_many(self.filters.clone()) {
            tracing::debug!(%error, "the subscription waits: it is tried again");
        }
        let at = Instant::now() + SUBSCRIBE_TIMEOUT;
        self.state.send_modify(|state| match &mut state.subscription {
            Subscription::Refused(due, _) => *due = Instant::now() + SUBSCRIBE_AGAIN,
            other => *other = Subscription::Asked(at),
        });
    }

    fn answered(&self, codes: &[SubscribeReasonCode]) {
        let granted = |code: Option<&SubscribeReasonCode>| matches!(code, Some(SubscribeReasonCode::Success(qos)) if *qos != QoS::AtMostOnce);
        let refused: Arc<[String]> = self
            .filters
            .iter()
            .enumerate()
            .filter(|(index, _)| !granted(codes.get(*index)))
            .map(|(_, filter)| filter.path.clone())
            .collect();
        if refused.is_empty() {
            self.state
                .send_modify(|state| state.subscription = Subscription::Granted);
            tracing::info!(lane = self.lane.as_str(), "subscribed: devices are heard");
            return;
        }
        if self.state.borrow().refused() != &refused[..] {
            metrics::counter!("gateway_mqtt_refused_total", "what" => "filter").increment(1);
            tracing::error!(
                lane = self.lane.as_str(),
                ?refused,
                ?codes,
                "the broker refuses subscriptions with QoS 1: devices are not heard"
            );
        }
        let again = Instant::now() + SUBSCRIBE_AGAIN;
        self.state
            .send_modify(|state| state.subscription = Subscription::Refused(again, refused));
    }

    fn pass_on(&self, message: Publish) {
        let connection = self.state.borrow().connection;
        if self.sender.try_send((connection, message)).is_err() {
            // Not acknowledged, so the broker keeps it and sends it again at the next connection.
            metrics::counter!("gateway_mqtt_refused_total", "what" => "overrun").increment(1);
        }
    }

    /// Somebody has the same client id.
    fn taken_over(&self) {
        metrics::counter!("gateway_mqtt_refused_total", "what" => "taken-over").increment(1);
        tracing::error!(
            lane = self.lane.as_str(),
            "the broker ends this session as soon as it begins, or gives it to another client: either a second gateway has the \
             same client_id, or the broker gives all sessions of this gateway one client id (Mosquitto: \
             use_username_as_clientid on the gateway's listener); each session needs its own"
        );
    }

    fn lost(&self, why: &str) {
        let was_connected = self.state.send_if_modified(|state| {
            if !matches!(state.subscription, Subscription::Refused(..)) {
                state.subscription = Subscription::None;
            }
            std::mem::replace(&mut state.is_connected, false)
        });
        if was_connected {
            let lane = self.lane.as_str();
            tracing::warn!(lane, why, "the broker is lost; dialling again");
        }
    }
}

const fn is_taken_over(error: &ConnectionError) -> bool {
    let ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) = error else {
        return false;
    };
    matches!(reason_code, DisconnectReasonCode::SessionTakenOver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_ended_again_and_again_is_noticed_and_dialled_more_seldom() {
        let (mut lives, start) = (Lives::default(), Instant::now());
        assert_eq!(lives.ended(start), 0, "nobody answered");
        for short in 1..=SHORT_LIVES_MAX {
            lives.began = Some(start);
            assert_eq!(lives.ended(start + Duration::from_secs(1)), short);
            lives.pause *= 2;
        }
        lives.began = Some(start);
        assert_eq!(lives.ended(start + STABLE_AFTER), 0);
        assert_eq!((lives.short, lives.pause), (0, PAUSE.0));
    }
}

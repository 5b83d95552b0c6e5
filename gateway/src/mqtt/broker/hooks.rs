//! What the broker asks on each connection, subscription and message; the sink is awaited before a PUBACK leaves.

mod claimant;
mod reasons;

use std::time::Duration;

use async_trait::async_trait;
use record::{
    ids::{DeviceId, ReadingId},
    reading::{Reason as Cause, Refusal},
    topic::{Channel, Topic},
};
use rmqtt::{
    codec::{
        types::MQTT_LEVEL_5,
        v5::{PublishAckReason, SubscribeAckReason},
    },
    context::ServerContext,
    hook::{Handler, HookResult, Parameter, ReturnType, Type},
    session::Session,
    types::{
        AuthResult, ClientId, ConnectInfo, FromType, Id, LastWill, Publish, PublishAclResult, Reason, Subscribe,
        SubscribeReturn,
    },
};

use self::reasons::{answer, code, oversize};
use super::{
    certificate::Presented,
    door::Guests,
    logins::{Login, Logins},
    quota::Quota,
    rights::Rights,
    voice,
};
use crate::{
    claim::{ClaimId, answer_topic},
    intake::Intake,
    mqtt::{
        notice::Notice,
        presence::{Arrival, Presence},
        rate::Rates,
    },
    outbox::{NotTaken, Verdict, Way},
};

/// The sink answers within this time or the message is not taken: while it is awaited the client gets no PINGRESP either.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker's questions, answered from users and sink.
#[derive(Clone)]
pub(super) struct Hooks {
    context: ServerContext,
    logins: Logins,
    quota: Quota,
    guests: Guests,
    rates: Rates,
    intake: Intake,
    presence: Presence,
}

impl Hooks {
    /// Answers from now on.
    pub(super) async fn register(
        context: &ServerContext,
        (logins, quota, guests, rates): (Logins, Quota, Guests, Rates),
        (intake, presence): (Intake, Presence),
    ) {
        let hooks = Self {
            context: context.clone(),
            logins,
            quota,
            guests,
            rates,
            intake,
            presence,
        };
        let register = context.extends.hook_mgr().register();
        for question in [
            Type::ClientAuthenticate,
            Type::ClientConnected,
            Type::ClientSubscribeCheckAcl,
            Type::MessagePublishCheckAcl,
            Type::MessagePublish,
            Type::ClientDisconnected,
        ] {
            register.add(question, Box::new(hooks.clone())).await;
        }
        register.start().await;
    }

    async fn authenticate(&self, connect: &ConnectInfo) -> AuthResult {
        let (name, login) = match self.identify(connect) {
            Ok(known) => known,
            Err(refused) => return refused,
        };
        let device = login.rights().and_then(Rights::device);
        if device.is_some_and(|device| self.intake.directory().is_out(device)) {
            return refused_login("revoked", AuthResult::NotAuthorized);
        }
        if connect
            .last_will()
            .is_some_and(|will| !login.rights().is_some_and(|rights| self.is_own_state(rights, &will)))
        {
            return refused_login("will", AuthResult::NotAuthorized);
        }
        // A session belongs to the user who opened it: whoever takes over its client id would get its messages.
        let shared = self.context.extends.shared().await;
        let id = connect.id();
        let owner = |client_id: ClientId| {
            let id = Id::new(id.node_id, id.lid, None, None, client_id, None);
            shared.entry(id).session().map(|session| session.id.clone())
        };
        if owner(id.client_id.clone()).is_some_and(|owner| owner.username_ref() != name) {
            return refused_login("client-id", AuthResult::NotAuthorized);
        }
        let is_theirs = |client_id: &str| owner(client_id.into()).is_some_and(|owner| owner.username_ref() == name);
        if !self.quota.take(name, &id.client_id, is_theirs) {
            return refused_login("sessions", AuthResult::NotAuthorized);
        }
        if !self.guests.admit(connect.ipaddress()) {
            return refused_login("door", AuthResult::NotAuthorized);
        }
        AuthResult::Allow(false, None)
    }

    /// Who it is, by certificate or by password.
    fn identify<'a>(&self, connect: &'a ConnectInfo) -> Result<(&'a str, Login), AuthResult> {
        let Some(name) = connect.username() else {
            return Err(refused_login("anonymous", AuthResult::NotAuthorized));
        };
        let password = connect.password().map(|password| &password[..]);
        let rights = match self.guests.certificate(connect.ipaddress()) {
            None => return Err(refused_login("door", AuthResult::NotAuthorized)),
            Some(Presented::Unnamed) => None,
            Some(Presented::Name(certificate)) => {
                let said = (&**name, &*connect.id().client_id);
                self.logins.recognise(&certificate, said, password)
            }
            Some(Presented::Nothing) => {
                let Some(password) = password else {
                    return Err(refused_login("anonymous", AuthResult::NotAuthorized));
                };
                let rights = self.logins.authenticate(name, password);
                let rights = rights.ok_or_else(|| refused_login("password", AuthResult::BadUsernameOrPassword));
                return Ok((name, rights?));
            }
        };
        let rights = rights.ok_or_else(|| refused_login("certificate", AuthResult::NotAuthorized));
        Ok((name, rights?))
    }

    fn is_own_state(&self, rights: &Rights, will: &LastWill<'_>) -> bool {
        let name: &str = match will {
            LastWill::V3(will) => &will.topic,
            LastWill::V5(will) => &will.topic,
        };
        Topic::parse(self.intake.gateway(), name)
            .is_ok_and(|topic| topic.channel == Channel::State && rights.may_publish(&topic))
    }

    fn subscribe(&self, session: &Session, subscribe: &Subscribe) -> SubscribeReturn {
        let (user, gateway, filter) = (
            session.id.username_ref(),
            self.intake.gateway(),
            &subscribe.topic_filter,
        );
        let may = match (self.logins.rights(user), ClaimId::of_user(user)) {
            (Some(rights), _) => rights.may_subscribe(gateway, filter),
            (None, Some(claim)) => **filter == *answer_topic(gateway, &claim),
            (None, None) => false,
        };
        if may {
            SubscribeReturn::new_success(subscribe.opts.qos(), None)
        } else {
            metrics::counter!("gateway_mqtt_refused_total", "what" => "subscription").increment(1);
            SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized)
        }
    }

    async fn publish(&self, session: &Session, publish: &Publish) -> PublishAclResult {
        let user = session.id.username_ref();
        // A client of MQTT 3.1.1 would get a plain PUBACK for what was not taken: it is disconnected instead.
        let understands = session.protocol().await.is_ok_and(|level| level == MQTT_LEVEL_5);
        let sent = Sent {
            rights: self.logins.rights(user),
            topic: Topic::parse(self.intake.gateway(), &publish.topic),
        };
        if !self.rates.take(&sent.whose(user)) {
            metrics::counter!("gateway_mqtt_refused_total", "what" => "rate").increment(1);
            let why = format!(
                "too fast: at most {} messages a second; wait and send it again",
                self.rates.messages_per_s()
            );
            return answer(PublishAckReason::QuotaExceeded, why, !understands);
        }
        if let (None, Some(claim)) = (&sent.rights, ClaimId::of_user(user)) {
            return self.present(session, &claim, publish).await;
        }
        let taken = tokio::time::timeout(TAKE_TIMEOUT, self.take(sent, publish)).await;
        match taken {
            Ok(Ok(Taken::Accepted)) => PublishAclResult::allow(),
            Ok(Ok(Taken::Refused {
                device,
                reading,
                refusal,
            })) => {
                let notice = Notice::of(&refusal, reading.as_ref(), &publish.payload);
                self.tell(session, device, &notice).await;
                let disconnect = match refusal.reason {
                    Cause::WrongTopic => !understands,
                    Cause::Revoked => self.logins.device(user).is_some(),
                    _ => false,
                };
                answer(code(refusal.reason), refusal.to_string(), disconnect)
            }
            Ok(Err(NotTaken::Stopping)) => answer(
                PublishAckReason::ImplementationSpecificError,
                NotTaken::Stopping.to_string(),
                true,
            ),
            Ok(Err(busy)) => answer(PublishAckReason::QuotaExceeded, busy.to_string(), !understands),
            Err(_elapsed) => {
                metrics::counter!("gateway_mqtt_refused_total", "what" => "slow-sink").increment(1);
                answer(
                    PublishAckReason::QuotaExceeded,
                    "the spool is slow: try again later".to_owned(),
                    !understands,
                )
            }
        }
    }

    async fn take(&self, sent: Sent, publish: &Publish) -> Result<Taken, NotTaken> {
        let verdict = match (&sent.rights, sent.topic) {
            (Some(rights), Ok(topic)) if rights.may_publish(&topic) => {
                if Presence::is_state(&topic, &publish.payload) {
                    // Who speaks for others may have held it back, and what is sent again was said before.
                    let way = if rights.device().is_some() && !publish.dup {
                        Way::Direct
                    } else {
                        Way::Relayed
                    };
                    let refusal = self.presence.says(&topic.device, &publish.payload, Arrival::Fresh(way));
                    return Ok(refusal.map_or(Taken::Accepted, |refusal| Taken::Refused {
                        device: Some(topic.device),
                        reading: None,
                        refusal,
                    }));
                }
                let (reading, verdict) = self.intake.receive(&publish.topic, &publish.payload).await;
                return Ok(match verdict? {
                    Verdict::Spooled(_) | Verdict::Duplicate(_) => {
                        self.presence.heard(&topic.device);
                        Taken::Accepted
                    }
                    Verdict::Quarantined(_, refusal) => Taken::Refused {
                        device: Some(topic.device),
                        reading,
                        refusal,
                    },
                });
            }
            (rights, topic) => {
                metrics::counter!("gateway_mqtt_refused_total", "what" => "topic").increment(1);
                let device = rights.as_ref().and_then(Rights::device).cloned();
                let refusal = topic
                    .err()
                    .unwrap_or_else(|| Refusal::new(Cause::WrongTopic, "this user may not publish under this topic"));
                self.intake
                    .refuse(device.clone(), refusal.clone(), &publish.payload)
                    .await?;
                Taken::Refused {
                    device,
                    reading: None,
                    refusal,
                }
            }
        };
        Ok(verdict)
    }

    /// Publishes the reason on the device's error topic, for whoever listens there.
    async fn tell(&self, session: &Session, device: Option<DeviceId>, notice: &Notice<'_>) {
        let Some(device) = device else { return };
        let topic = Topic {
            device,
            channel: Channel::Error,
        }
        .name(self.intake.gateway());
        self.say(session, topic, notice.text()).await;
    }

    /// Publishes something as the gateway.
    async fn say(&self, session: &Session, topic: String, text: String) {
        voice::say(&self.context, session.id.clone(), (topic, text), None).await;
    }

    /// A will is published: a device has gone without saying goodbye.
    fn departed(&self, will: &Publish) {
        if let Ok(Topic { device, .. }) = Topic::parse(self.intake.gateway(), &will.topic) {
            self.presence.stated(&device, &will.payload, Arrival::Kept);
        }
    }

    /// A packet above the limit ended the connection before it was received: it is counted and shown all the same.
    async fn disconnected(&self, session: &Session, reason: &Reason) {
        let Some(size_bytes) = oversize(reason) else { return };
        let device = self.logins.device(session.id.username_ref());
        if let Err(error) = self.intake.refuse_unreceived(device, size_bytes).await {
            tracing::warn!(%error, size_bytes, "a giant packet was dropped and could not be recorded");
        }
    }
}

/// By whom a message is, and where it comes in.
struct Sent {
    rights: Option<Rights>,
    topic: Result<Topic, Refusal>,
}

impl Sent {
    /// Whose rate the message counts for: the device's under whose topic it may come, else the user's.
    fn whose(&self, user: &str) -> String {
        match (&self.rights, &self.topic) {
            (Some(rights), Ok(topic)) if rights.may_publish(topic) => Rates::name(topic),
            // No device's name has a colon.
            _ => format!("user:{user}"),
        }
    }
}

/// What became of a message that may be acknowledged.
enum Taken {
    /// A reading that is durable, or a state.
    Accepted,
    Refused {
        device: Option<DeviceId>,
        reading: Option<ReadingId>,
        refusal: Refusal,
    },
}

fn refused_login(why: &'static str, result: AuthResult) -> AuthResult {
    metrics::counter!("gateway_mqtt_logins_refused_total", "why" => why).increment(1);
    result
}

#[async_trait]
impl Handler for Hooks {
    async fn hook(&self, question: &Parameter, before: Option<HookResult>) -> ReturnType {
        match question {
            Parameter::ClientAuthenticate(connect) => {
                (false, Some(HookResult::AuthResult(self.authenticate(connect).await)))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => (
                false,
                Some(HookResult::SubscribeAclResult(self.subscribe(session, subscribe))),
            ),
            Parameter::MessagePublishCheckAcl(session, publish) => (
                false,
                Some(HookResult::PublishAclResult(self.publish(session, publish).await)),
            ),
            Parameter::MessagePublish(_, origin, publish) if matches!(origin.typ(), FromType::LastWill) => {
                self.departed(publish);
                (true, before)
            }
            Parameter::ClientConnected(session) => {
                self.quota.opened(session.id.username_ref(), &session.id.client_id);
                (true, before)
            }
            Parameter::ClientDisconnected(session, reason) => {
                self.disconnected(session, reason).await;
                (true, before)
            }
            _ => (true, before),
        }
    }
}

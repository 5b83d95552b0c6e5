//! The sessions at an outside broker, one for each urgency: what waits in one of them keeps nothing in another from coming.
//!
//! A broker sends a session so many messages that are not acknowledged, and no more. While the spool takes nothing, waveforms
//! or readings fill their session's window; an alarm comes through a window of its own.

use record::{
    ids::GatewayId,
    topic::{self, Channel},
};
use rumqttc::{QoS, RetainForwardRule, SubscribeFilter};

/// Requests of claims that the broker may send before an acknowledgement: few, and each is small.
const CLAIMS_RECEIVE_MAX: u16 = 16;

/// One of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Alarms; the gateway speaks here, too, if it is connected.
    Alarms,
    /// Single values, and whether devices are there. It keeps the client id that is configured: until there were lanes, this
    /// was the only session.
    Readings,
    /// Waveforms.
    Waves,
    /// Claims of new devices: whoever has the broker's user for them cannot fill the window of what is measured.
    Claims,
}

impl Lane {
    /// Those of every gateway.
    pub(super) const MEASURED: [Self; 3] = [Self::Alarms, Self::Readings, Self::Waves];

    /// A word for logs and the status.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Alarms => "alarms",
            Self::Readings => "readings",
            Self::Waves => "waves",
            Self::Claims => "claims",
        }
    }

    /// The client id, derived from the one that is configured.
    pub(super) fn client_id(self, configured: &str) -> String {
        match self {
            Self::Readings => configured.to_owned(),
            other => format!("{configured}.{}", other.as_str()),
        }
    }

    /// How many messages the broker may send before an acknowledgement.
    pub(super) const fn receive_max(self, config: &super::Config) -> u16 {
        match self {
            Self::Alarms => config.alarms_receive_max.get(),
            Self::Readings => config.receive_max.get(),
            Self::Waves => config.waves_receive_max.get(),
            Self::Claims => CLAIMS_RECEIVE_MAX,
        }
    }

    /// What is heard in it.
    pub(super) fn filters(self, gateway: &GatewayId) -> Vec<SubscribeFilter> {
        let prefix = topic::prefix(gateway);
        let filter =
            |channel: Channel| SubscribeFilter::new(format!("{prefix}+/{}", channel.as_str()), QoS::AtLeastOnce);
        let once = |channel| SubscribeFilter {
            // Each connection subscribes again: what somebody has retained comes once.
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..filter(channel)
        };
        match self {
            Self::Alarms => vec![once(Channel::Event)],
            // A state is retained so that it is known after each start.
            Self::Readings => vec![once(Channel::Reading), filter(Channel::State)],
            Self::Waves => vec![once(Channel::Wave)],
            Self::Claims => vec![SubscribeFilter {
                // A request is answered when it is made.
                retain_forward_rule: RetainForwardRule::Never,
                ..SubscribeFilter::new(format!("{prefix}claim/+/request"), QoS::AtLeastOnce)
            }],
        }
    }

    /// What the one session of former versions heard as well, and this one must not: it would keep alarms and waveforms for
    /// a window that does not serve them.
    pub(super) fn former_filters(gateway: &GatewayId) -> Vec<String> {
        let others = [Self::Alarms, Self::Waves];
        let filters = others.into_iter().flat_map(|lane| lane.filters(gateway));
        filters.map(|filter| filter.path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_that_devices_publish_on_is_heard_in_one_lane() {
        let gateway = "home-1".parse().expect("good");
        let heard: Vec<_> = Lane::MEASURED
            .into_iter()
            .flat_map(|lane| lane.filters(&gateway))
            .collect();
        for channel in [Channel::Reading, Channel::Wave, Channel::Event, Channel::State] {
            let filter = format!("vitalfog/v1/home-1/+/{}", channel.as_str());
            assert_eq!(heard.iter().filter(|one| one.path == filter).count(), 1, "{filter}");
        }
        assert_eq!(heard.len(), 4);
        let former = ["vitalfog/v1/home-1/+/event", "vitalfog/v1/home-1/+/wave"];
        assert_eq!(Lane::former_filters(&gateway), former);
        let ids =
            [Lane::Alarms, Lane::Readings, Lane::Waves, Lane::Claims].map(|lane| lane.client_id("gateway.home-1"));
        let expected = [
            "gateway.home-1.alarms",
            "gateway.home-1",
            "gateway.home-1.waves",
            "gateway.home-1.claims",
        ];
        assert_eq!(ids, expected);
    }
}

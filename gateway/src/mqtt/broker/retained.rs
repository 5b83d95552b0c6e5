//! Retained messages of the embedded broker: a device's state, and nothing that was measured.

use std::time::Duration;

use async_trait::async_trait;
use rmqtt::{
    Result,
    retain::{DefaultRetainStorage, RetainStorage},
    types::{Retain, TopicFilter, TopicName},
};

/// Retained messages, at most: one state for each of many devices.
const STATES_MAX: isize = 10_000;

/// The last state of each device.
pub(super) struct States(DefaultRetainStorage);

impl Default for States {
    fn default() -> Self {
        Self(DefaultRetainStorage::new())
    }
}

#[async_trait]
impl RetainStorage for States {
    fn enable(&self) -> bool {
        true
    }

    async fn set(&self, topic: &TopicName, retain: Retain, expiry: Option<Duration>) -> Result<()> {
        if !topic.ends_with("/state") || self.0.count().await >= STATES_MAX {
            return Ok(());
        }
        self.0.set_with_timeout(topic, retain, expiry).await
    }

    async fn get(&self, filter: &TopicFilter) -> Result<Vec<(TopicName, Retain)>> {
        self.0.get_message(filter).await
    }

    async fn count(&self) -> isize {
        self.0.count().await
    }

    async fn max(&self) -> isize {
        self.0.max().await
    }
}

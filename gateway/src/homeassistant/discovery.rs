//! What Home Assistant is told of a sign, in the words of its MQTT discovery: one retained `config` for each sensor.
//!
//! Device classes and their units are those of Home Assistant's sensor integration; a sign without a class there has its unit alone.

use record::{
    ids::{DeviceId, GatewayId},
    vital::Sign,
};
use serde_json::{Value, json};

use crate::newest::Shown;

/// How a unit of UCUM is written there, and which class a sensor with it has.
struct Unit {
    ucum: &'static str,
    written: &'static str,
    class: Option<&'static str>,
}

const fn unit(ucum: &'static str, written: &'static str, class: Option<&'static str>) -> Unit {
    Unit { ucum, written, class }
}

/// All units of the signs that have single values.
const UNITS: &[Unit] = &[
    unit("/min", "/min", None),
    unit("%", "%", None),
    unit("mm[Hg]", "mmHg", Some("pressure")),
    unit("Cel", "°C", Some("temperature")),
    unit("[degF]", "°F", Some("temperature")),
    unit("mg/dL", "mg/dL", Some("blood_glucose_concentration")),
    unit("mmol/L", "mmol/L", Some("blood_glucose_concentration")),
    unit("kg", "kg", Some("weight")),
    unit("g", "g", Some("weight")),
    unit("[lb_av]", "lb", Some("weight")),
    unit("{steps}/d", "steps/d", None),
    unit("1", "steps", None),
    unit("ms", "ms", None),
];

/// Where everything of one gateway stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topics {
    prefix: String,
    node: String,
}

impl Topics {
    pub(super) fn of(prefix: &str, gateway: &GatewayId) -> Self {
        Self {
            prefix: prefix.to_owned(),
            node: format!("vitalfog_{gateway}"),
        }
    }

    /// What all topics of this gateway begin with.
    pub(super) fn own(&self) -> String {
        format!("{}/sensor/{}/", self.prefix, self.node)
    }

    /// Whether this gateway is there.
    pub(super) fn gateway(&self) -> String {
        format!("{}availability", self.own())
    }

    /// Whether a device is there.
    pub(super) fn device(&self, device: &DeviceId) -> String {
        format!("{}{device}/availability", self.own())
    }

    /// Where the gateway hears its own word, and knows that the broker has said all that stands there.
    pub(super) fn echo(&self) -> String {
        format!("{}/{}/echo", self.prefix, self.node)
    }

    /// Where Home Assistant says that it has started.
    pub(super) fn birth(&self) -> String {
        format!("{}/status", self.prefix)
    }

    fn object(device: &DeviceId, code: &str) -> String {
        format!("{device}_{code}")
    }

    pub(super) fn config(&self, device: &DeviceId, code: &str) -> String {
        format!("{}{}/config", self.own(), Self::object(device, code))
    }

    pub(super) fn state(&self, device: &DeviceId, code: &str) -> String {
        format!("{}{}/state", self.own(), Self::object(device, code))
    }

    /// The device and the sign that a state topic is about.
    pub(super) fn state_of(&self, topic: &str) -> Option<(DeviceId, &'static str)> {
        let object = topic.strip_prefix(&self.own())?.strip_suffix("/state")?;
        // A device's name has no underscore.
        let (device, code) = object.split_once('_')?;
        let sign = Sign::of(code).filter(|sign| sign.code == code)?;
        Some((device.parse().ok()?, sign.code))
    }

    /// The `config` of one sensor.
    pub(super) fn discovery(&self, device: &DeviceId, code: &str, shown: &Shown) -> Option<Value> {
        let sign = Sign::of(code)?;
        let unit = UNITS.iter().find(|unit| unit.ucum == shown.unit)?;
        let mut config = json!({
            "name": sign.display,
            "unique_id": format!("{}_{}", self.node, Self::object(device, code)),
            "state_topic": self.state(device, code),
            "value_template": "{{ value_json.value }}",
            "json_attributes_topic": self.state(device, code),
            "state_class": "measurement",
            "unit_of_measurement": unit.written,
            "availability": [{"topic": self.gateway()}, {"topic": self.device(device)}],
            "availability_mode": "all",
            "qos": 1,
            "device": {
                "identifiers": [format!("{}_{device}", self.node)],
                "name": device.as_str(),
                "manufacturer": "Vitalfog",
                "model": "home health device",
            },
            "origin": {"name": "vitalfog-gateway", "sw_version": env!("CARGO_PKG_VERSION")},
        });
        if let Some(class) = unit.class {
            config["device_class"] = json!(class);
        }
        Some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{ids::BootId, reading::TimeQuality, vital::SIGNS};

    #[test]
    fn every_sign_with_single_values_can_be_shown_in_each_of_its_units() {
        let home: GatewayId = "home-1".parse().expect("good");
        let topics = Topics::of("homeassistant", &home);
        let device: DeviceId = "oximeter-1".parse().expect("good");
        let mut shown = 0;
        for sign in SIGNS.iter().filter(|sign| !sign.waveform) {
            for unit in sign.units {
                let value = Shown {
                    value: Some("1".to_owned()),
                    unit: unit.ucum.to_owned(),
                    measured: String::new(),
                    measured_ms: 0,
                    time_quality: TimeQuality::Synced,
                    questionable: false,
                    boot: BootId { counter: 1, random: 1 },
                    seq: 1,
                };
                let config = topics.discovery(&device, sign.code, &value);
                assert!(config.is_some(), "{} in {}", sign.display, unit.ucum);
                shown += 1;
            }
            let topic = topics.state(&device, sign.code);
            assert_eq!(topics.state_of(&topic), Some((device.clone(), sign.code)));
        }
        assert!(shown > 15);
        for strange in [
            "homeassistant/sensor/other/x_8867-4/state",
            "homeassistant/sensor/vitalfog_home-1/oximeter-1_0-0/state",
            "x",
        ] {
            assert_eq!(topics.state_of(strange), None);
        }
    }
}

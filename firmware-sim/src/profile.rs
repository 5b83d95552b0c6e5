//! Named profiles: what some devices of a fleet do differently from the others.
//!
//! `[profile.hot] devices = ["scale-1"] rate = 100` makes one device a hundred times as talkative. A profile is for the devices
//! that it names, or for a fraction of those that no profile names.

use std::collections::BTreeMap;

use record::ids::DeviceId;
use serde::{Deserialize, Serialize};

use crate::{device::Clock, fault};

/// Stored steps of a device, at most: a year of minutes.
const STORED_STEPS_MAX: u64 = 525_600;

/// What some devices do differently.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Whose it is, by name.
    pub devices: Vec<DeviceId>,
    /// Or: of which part of the devices that are named nowhere.
    pub fraction: f64,
    /// How many times as often they measure.
    pub rate: f64,
    /// What they know of the time.
    pub clock: Clock,
    /// Steps that they measured before they had a connection, at their usual pace, and send beside what they measure now.
    pub stored_steps: u64,
    /// The part of their single values that they publish as alarms, on `event`.
    pub events: f64,
    /// Whether they seal what they publish, if there is a `[seal]`.
    pub seals: bool,
    /// What goes wrong; without it, what goes wrong for all.
    pub fault: Option<fault::Config>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            fraction: 0.0,
            rate: 1.0,
            clock: Clock::default(),
            stored_steps: 0,
            events: 0.0,
            seals: true,
            fault: None,
        }
    }
}

/// All profiles, by name.
pub type Profiles = BTreeMap<String, Profile>;

/// Everything that is wrong with the profiles, given the devices that there are.
pub(crate) fn complaints(profiles: &Profiles, devices: &[DeviceId]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut named = BTreeMap::new();
    for (name, profile) in profiles {
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                complaints.push(format!("[profile.{name}] {what}"));
            }
        };
        let is_part = |part: f64| (0.0..=1.0).contains(&part);
        expect(is_part(profile.fraction), "fraction must lie between 0 and 1");
        expect(is_part(profile.events), "events must lie between 0 and 1");
        expect(
            profile.rate.is_finite() && profile.rate > 0.0,
            "rate must be a number above 0",
        );
        expect(
            profile.stored_steps <= STORED_STEPS_MAX,
            "stored_steps must be 525600 at most",
        );
        expect(
            profile.devices.is_empty() || profile.fraction == 0.0,
            "it is for the devices that it names, or for a fraction of the others, not for both",
        );
        if let Some(fault) = &profile.fault
            && let Err(error) = fault.faults()
        {
            complaints.push(format!("[profile.{name}.fault] {error}"));
        }
        for device in &profile.devices {
            if !devices.contains(device) {
                complaints.push(format!("[profile.{name}] there is no device {device}"));
            }
            if let Some(other) = named.insert(device, name) {
                complaints.push(format!("device {device} has two profiles, {other} and {name}"));
            }
        }
    }
    if profiles.values().map(|profile| profile.fraction).sum::<f64>() > 1.000_001 {
        complaints.push("the fractions of all profiles together must not be above 1".to_owned());
    }
    complaints
}

/// The profile of each device with its name, in the order of the devices.
pub(crate) fn assign<'a>(profiles: &'a Profiles, devices: &[DeviceId]) -> Vec<Option<(&'a str, &'a Profile)>> {
    let all = || profiles.iter().map(|(name, profile)| (name.as_str(), profile));
    let named = |device: &DeviceId| all().find(|(_, profile)| profile.devices.contains(device));
    let mut unnamed = 0_u32;
    let shared = |number: u32| {
        let mut end = 0.0;
        all()
            .filter(|(_, profile)| profile.devices.is_empty())
            .find(|(_, profile)| {
                let start = end;
                end += profile.fraction;
                // Spread evenly: the golden ratio's multiples fill 0..1 without clusters, for any number of devices.
                (start..end).contains(&(f64::from(number) * 0.618_033_988_749_895).fract())
            })
    };
    devices
        .iter()
        .map(|device| {
            named(device).or_else(|| {
                unnamed += 1;
                shared(unnamed - 1)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(number: usize) -> Vec<DeviceId> {
        (0..number)
            .map(|n| format!("scale-{n}").parse().expect("good"))
            .collect()
    }

    #[test]
    fn a_profile_is_for_whom_it_names_and_a_fraction_is_that_part_of_the_rest() {
        let devices = devices(1_000);
        let profiles = Profiles::from([
            (
                "hot".to_owned(),
                Profile {
                    devices: vec![devices[7].clone()],
                    rate: 100.0,
                    ..Profile::default()
                },
            ),
            (
                "clockless".to_owned(),
                Profile {
                    fraction: 0.25,
                    clock: Clock::None,
                    ..Profile::default()
                },
            ),
        ]);
        assert_eq!(complaints(&profiles, &devices), [""; 0]);
        let assigned = assign(&profiles, &devices);
        assert_eq!(assigned[7], Some(("hot", &profiles["hot"])));
        let clockless = assigned
            .iter()
            .filter(|one| **one == Some(("clockless", &profiles["clockless"])))
            .count();
        assert!((245..=255).contains(&clockless), "{clockless}");
    }

    #[test]
    fn everything_wrong_is_said() {
        let devices = devices(2);
        let profile = |change: fn(&mut Profile)| {
            let mut profile = Profile::default();
            change(&mut profile);
            profile
        };
        let both = profile(|p| {
            p.devices = vec!["scale-0".parse().expect("good"), "nobody".parse().expect("good")];
            p.fraction = 0.5;
            p.rate = 0.0;
            p.events = 2.0;
        });
        let twice = profile(|p| {
            p.devices = vec!["scale-0".parse().expect("good")];
            p.stored_steps = u64::MAX;
            p.fault = Some(fault::Config {
                giants: 2.0,
                ..fault::Config::default()
            });
        });
        let profiles = Profiles::from([
            ("a".to_owned(), both),
            ("b".to_owned(), twice),
            ("c".to_owned(), profile(|p| p.fraction = 0.9)),
        ]);
        let said = complaints(&profiles, &devices).join("\n");
        for part in [
            "not for both",
            "rate",
            "events",
            "no device nobody",
            "two profiles",
            "stored_steps",
            "[profile.b.fault]",
            "fractions of all",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

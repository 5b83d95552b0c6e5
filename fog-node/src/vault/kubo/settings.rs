//! What the daemon's own settings must be, so that no payload, and no word about one, leaves the network of the members.
//!
//! Kubo's defaults are those of a public peer. Each rule names the key to change and what to set it to; names and defaults
//! are those of Kubo 0.43, older spellings are understood where they mean the same.

use std::{fs, io, path::Path, time::Duration};

use serde_json::{Value as Json, json};

use super::{Config, Failure, api::Api, rpc::Rpc};

/// A key, what it must be, and why.
const RULES: [(&str, &str, &str); 14] = [
    ("AutoConf.Enabled", "false", "it would fetch public peers and routers"),
    (
        "Routing.Type",
        "\"none\"",
        "the public DHT would be asked, and told, about payloads",
    ),
    (
        "AutoTLS.Enabled",
        "false",
        "it registers the daemon at a public service",
    ),
    (
        "HTTPRetrieval.Enabled",
        "false",
        "public gateways would be asked for payloads",
    ),
    (
        "Discovery.MDNS.Enabled",
        "false",
        "it tells the local network that it is here",
    ),
    ("Gateway.NoFetch", "true", "its gateway would fetch for strangers"),
    (
        "Gateway.DeserializedResponses",
        "false",
        "its gateway would serve what nobody can check",
    ),
    (
        "Datastore.HashOnRead",
        "true",
        "a rotten block would be handed to other peers",
    ),
    ("Swarm.DisableNatPortMap", "true", "it opens ports of the router"),
    ("Swarm.RelayClient.Enabled", "false", "it talks to public relays"),
    ("Swarm.RelayService.Enabled", "false", "it relays for strangers"),
    (
        "Swarm.EnableHolePunching",
        "false",
        "it lets strangers in through the firewall",
    ),
    ("AutoNAT.ServiceMode", "\"disabled\"", "it dials whoever asks for it"),
    ("Ipns.UsePubsub", "false", "it speaks with whoever subscribes"),
];
/// Keys that Kubo leaves out when they are as they should be.
const OFF_WHEN_ABSENT: [&str; 1] = ["Ipns.UsePubsub"];
/// Counting the blocks of a large repository takes long.
const COUNT_TIMEOUT: Duration = Duration::from_secs(600);
/// The form of a swarm key: the only one that Kubo has.
const SWARM_KEY_HEAD: &str = "/key/swarm/psk/1.0.0/";

/// Everything that is wrong with the settings of the configured daemon, each with the key to change.
///
/// # Errors
/// [`Failure`]: the daemon does not answer, or not so that it can be judged.
pub async fn look_at(config: &Config) -> Result<Vec<String>, Failure> {
    let rpc = Rpc::new(config).map_err(Failure::Said)?;
    let mut faults = judge(&rpc.settings().await?);
    if matches!(config.api, Api::Loopback(_)) && answers_anybody(config).await? {
        faults.push(
            "API.Authorizations: any program of this host may delete every payload; require a secret there (and name it in \
             vault.kubo.authorization_file), or let Addresses.API be a Unix socket"
                .to_owned(),
        );
    }
    faults.extend(match rpc.repository_path(COUNT_TIMEOUT).await? {
        Some(path) => swarm_key(&path.join("swarm.key")),
        None => {
            Some("swarm.key: the daemon does not say where its repository is, so it cannot be looked at".to_owned())
        }
    });
    Ok(faults)
}

/// Whether the daemon does what it is asked without a secret: the settings that it shows leave out what it demands.
async fn answers_anybody(config: &Config) -> Result<bool, Failure> {
    let anybody = Config {
        authorization_file: None,
        ..config.clone()
    };
    match Rpc::new(&anybody).map_err(Failure::Said)?.id().await {
        Ok(_) => Ok(true),
        Err(Failure::Denied(_)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// What is wrong in the daemon's configuration.
pub(super) fn judge(settings: &Json) -> Vec<String> {
    let at = |key: &str| key.split('.').fold(settings, |inner, part| &inner[part]);
    let mut faults = Vec::new();
    if !is_empty(at("Bootstrap")) {
        faults.push("Bootstrap must be []: the daemon would dial public peers".to_owned());
    }
    for (key, wanted, why) in RULES {
        let wanted: Json = serde_json::from_str(wanted).expect("a rule is JSON");
        let value = at(key);
        let is_off = value.is_null() && OFF_WHEN_ABSENT.contains(&key);
        if *value != wanted && !is_off {
            faults.push(format!("{key} must be {wanted}: {why}"));
        }
    }
    // Before 0.38 it was called so.
    let announces_nothing = *at("Provide.Enabled") == json!(false) || *at("Reprovider.Interval") == json!("0");
    if !announces_nothing {
        faults.push("Provide.Enabled must be false: the daemon would announce which payloads it has".to_owned());
    }
    for address in listed(at("Addresses.API")) {
        if let Err(why) = Api::try_from(address.to_owned()) {
            faults.push(format!("Addresses.API: {why}"));
        }
    }
    if is_unsynced(at("Datastore.Spec")) {
        faults.push(
            "Datastore.Spec: its flatfs must have \"sync\": true: a payload counts as kept when it is on the disk"
                .to_owned(),
        );
    }
    placeholders(settings, &mut Vec::new(), &mut faults);
    faults
}

/// `null`, an empty list, an empty object.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// One text, or a list of them: Kubo writes either.
fn listed(value: &Json) -> Vec<&str> {
    match value {
        Json::String(text) => vec![text],
        Json::Array(list) => list.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Whether some store in the specification says that it does not sync.
fn is_unsynced(spec: &Json) -> bool {
    match spec {
        Json::Object(map) => {
            (map.get("type") == Some(&json!("flatfs")) && map.get("sync") != Some(&json!(true)))
                || map.values().any(is_unsynced)
        }
        Json::Array(list) => list.iter().any(is_unsynced),
        _ => false,
    }
}

/// `auto` stands for what a public service says.
fn placeholders<'a>(value: &'a Json, path: &mut Vec<&'a str>, faults: &mut Vec<String>) {
    match value {
        // These two have rules of their own.
        Json::String(text) if text == "auto" && !matches!(path.first(), Some(&("Bootstrap" | "Routing"))) => {
            faults.push(format!(
                "{} must not be \"auto\": a public service fills it in",
                path.join(".")
            ));
        }
        Json::Array(list) => list.iter().for_each(|each| placeholders(each, path, faults)),
        Json::Object(map) => {
            for (key, inner) in map {
                path.push(key);
                placeholders(inner, path, faults);
                path.pop();
            }
        }
        _ => {}
    }
}

/// What is wrong with the key that closes the swarm to strangers.
fn swarm_key(path: &Path) -> Option<String> {
    let named = path.display();
    match fs::read_to_string(path).map(zeroize::Zeroizing::new) {
        Ok(text) => {
            let mut lines = text.lines().map(str::trim);
            let is_key = lines.next() == Some(SWARM_KEY_HEAD)
                && lines.next() == Some("/base16/")
                && lines
                    .next()
                    .is_some_and(|key| key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()));
            (!is_key).then(|| format!("swarm.key: {named} is no swarm key of 32 bytes in /base16/"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!(
            "swarm.key: there is none at {named}: without it the daemon speaks with any peer; make one for the network, give \
             it to every member, and start the daemon with LIBP2P_FORCE_PNET=1"
        )),
        Err(error) => Some(format!(
            "swarm.key: {named} cannot be looked at ({error}): run this check as a user who may read the daemon's repository"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What config/clinic tells the operator to set.
    const CLINIC: &str = include_str!("../../../../config/clinic/kubo.json");

    fn clinic() -> Json {
        serde_json::from_str(CLINIC).expect("JSON")
    }

    fn set(settings: &mut Json, key: &str, value: Json) {
        let (path, last) = key
            .rsplit_once('.')
            .map_or((None, key), |(path, last)| (Some(path), last));
        let inner = path
            .into_iter()
            .flat_map(|path| path.split('.'))
            .fold(settings, |inner, part| &mut inner[part]);
        inner[last] = value;
    }

    #[test]
    fn what_the_clinic_sets_is_right() {
        assert_eq!(judge(&clinic()), Vec::<String>::new());
    }

    #[test]
    fn every_way_to_the_public_network_is_found_with_its_key() {
        let cases = [
            ("Bootstrap", json!(["auto"])),
            ("AutoConf.Enabled", Json::Null),
            ("Routing.Type", json!("auto")),
            ("Routing.Type", json!("dhtclient")),
            ("Provide.Enabled", json!(true)),
            ("Provide.Enabled", Json::Null),
            ("AutoTLS.Enabled", Json::Null),
            ("HTTPRetrieval.Enabled", Json::Null),
            ("Discovery.MDNS.Enabled", json!(true)),
            ("Gateway.NoFetch", json!(false)),
            ("Gateway.DeserializedResponses", Json::Null),
            ("Datastore.HashOnRead", json!(false)),
            (
                "Datastore.Spec.mounts",
                json!([{"child": {"type": "flatfs", "sync": false}}]),
            ),
            ("Swarm.DisableNatPortMap", json!(false)),
            ("Swarm.RelayClient.Enabled", Json::Null),
            ("Swarm.RelayService.Enabled", Json::Null),
            ("Swarm.EnableHolePunching", Json::Null),
            ("AutoNAT.ServiceMode", Json::Null),
            ("Ipns.UsePubsub", json!(true)),
            ("Ipns.DelegatedPublishers", json!(["auto"])),
            ("DNS.Resolvers", json!({".": "auto"})),
            ("Addresses.API", json!("/ip4/0.0.0.0/tcp/5001")),
            (
                "Addresses.API",
                json!(["/ip4/127.0.0.1/tcp/5001", "/ip4/10.0.0.2/tcp/5001"]),
            ),
        ];
        for (key, value) in cases {
            let mut settings = clinic();
            set(&mut settings, key, value.clone());
            let faults = judge(&settings);
            let named = key.split('.').take(2).collect::<Vec<_>>().join(".");
            assert!(
                faults.len() == 1 && faults[0].starts_with(&named),
                "{key} = {value}: {faults:?}"
            );
        }
    }

    #[test]
    fn the_defaults_of_a_public_peer_are_refused() {
        assert!(judge(&json!({"Bootstrap": ["auto"]})).len() > 12);
        let older = json!({"Reprovider": {"Interval": "0"}});
        assert!(!judge(&older).iter().any(|fault| fault.starts_with("Provide")));
    }

    #[test]
    fn a_swarm_without_a_key_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("swarm.key");
        assert!(swarm_key(&path).expect("none").contains("LIBP2P_FORCE_PNET"));
        fs::write(&path, "/key/swarm/psk/1.0.0/\n/base16/\n1234\n").expect("written");
        assert!(swarm_key(&path).expect("short").contains("32 bytes"));
        let good = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "0a".repeat(32));
        fs::write(&path, good).expect("written");
        assert_eq!(swarm_key(&path), None);
    }
}

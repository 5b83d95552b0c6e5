//! What is printed once everything runs: where it is, and commands that can be pasted into another terminal.

use crate::{
    config::Broker,
    identities::Tokens,
    network::{GATEWAY, HOME_USER, Network},
};

/// The text.
#[must_use]
pub fn text(network: &Network, tokens: &Tokens, broker: Broker) -> String {
    let (ca, ports) = (network.ca_file.display(), &network.ports);
    let nodes: Vec<_> = network
        .nodes
        .iter()
        .map(|node| format!("{} {}", node.name, node.url))
        .collect();
    let mqtt = ports.mqtt();
    let (login, by_hand) = match broker {
        Broker::Embedded => ("", ""),
        Broker::Mosquitto => (
            "; Mosquitto wants a device's certificate instead: fleet/certificates",
            " (not with Mosquitto: play one of the spare_devices, with --cert, --key and -i)",
        ),
    };
    let password = network.gateway.home_password.file.display();
    let device = &network.household.devices[0];
    let person = network.household.person_of(device);
    let (patient, name) = (person.patient.id, person.name());
    let (device, key) = (&device.id, device.key_file.display());
    let (hospital, token) = (&network.nodes[0].url, &tokens.hospital);
    let firmware = network.folder.path("bin/firmware-sim");
    let firmware = firmware.display();
    format!(
        "
Vitalfog runs. Everything is on this machine alone, synthetic, and ends with Ctrl-C.
  fog nodes   {nodes}
  gateway     mqtts://{mqtt} (user {HOME_USER}, password in {password}{login}), status http://{gateway}/status
  data        {data}
  CA          {ca}

{name}, as a client of {custodian} sees them:
  curl --cacert {ca} -H 'Authorization: Bearer {token}' '{hospital}/fhir/Observation?patient={patient}&_count=3'

A reading of {device}, made and published by hand{by_hand}:
  {firmware} sign --key {key} --device {device} --code 8867-4 --value 61 --unit /min |
    mosquitto_pub -V 5 -q 1 -h {host} -p {port} --cafile {ca} -u {HOME_USER} -P \"$(cat {password})\" \\
      -t vitalfog/v1/{GATEWAY}/{device}/reading -s
",
        nodes = nodes.join(", "),
        gateway = ports.gateway_http(),
        data = network.folder.root().display(),
        custodian = network.custodian().id(),
        host = mqtt.ip(),
        port = mqtt.port(),
    )
}

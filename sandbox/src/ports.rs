//! Where everything listens, all ports derived from one base, and whether they are free. Everything is on loopback, unless the
//! fog nodes are given hosts of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use serde::Deserialize;

/// The base unless `--port-base` moves it: nodes answer from 8401 on, devices publish to 18830.
pub const BASE: u16 = 8400;
/// Fog nodes in one sandbox, at most: one letter each, and their ports do not meet the gateway's.
pub const NODES_MAX: u16 = 26;

const OBSERVER_HTTP: u16 = 60;
const NEWCOMER_HTTP: u16 = 70;
const NEWCOMER_CONSENSUS: u16 = 71;
const GATEWAY_HTTP: u16 = 80;
const CONSENSUS: u16 = 100;
const MQTT: u16 = 10_430;
const MQTT_OF_GATEWAY: u16 = MQTT + 1;
const MQTT_OF_CLAIMS: u16 = MQTT + 2;
/// The highest base whose ports all exist.
pub const BASE_MAX: u16 = u16::MAX - MQTT_OF_CLAIMS;
/// The lowest base whose ports need no privileges.
pub const BASE_MIN: u16 = 1_024;

/// A host of its own for one fog node: a network namespace of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Where the node is reached from every other host and from the sandbox.
    pub address: IpAddr,
    /// The namespace that has this address, as `ip netns` calls it; the node is started in it, which needs root.
    pub namespace: String,
}

/// The ports of one sandbox.
#[derive(Clone, Debug)]
pub struct Ports {
    base: u16,
    nodes: u16,
    hosts: Vec<Host>,
}

impl Ports {
    /// The ports of this many nodes above a base; `None` if there are no such ports.
    #[must_use]
    pub fn plan(base: u16, nodes: u16) -> Option<Self> {
        ((BASE_MIN..=BASE_MAX).contains(&base) && nodes <= NODES_MAX).then_some(Self {
            base,
            nodes,
            hosts: Vec::new(),
        })
    }

    /// With each fog node on a host of its own; without hosts all stay on loopback.
    #[must_use]
    pub fn on(self, hosts: Vec<Host>) -> Self {
        Self { hosts, ..self }
    }

    /// The host of node `index`, from 0, if it has one of its own.
    #[must_use]
    pub fn node_host(&self, index: u16) -> Option<&Host> {
        self.hosts.get(usize::from(index))
    }

    /// HTTPS of node `index`, from 0.
    #[must_use]
    pub fn node_http(&self, index: u16) -> SocketAddr {
        self.node_at(index, 1 + index)
    }

    /// Consensus of node `index`, from 0.
    #[must_use]
    pub fn node_consensus(&self, index: u16) -> SocketAddr {
        self.node_at(index, CONSENSUS + 1 + index)
    }

    /// HTTPS of observer `index`, from 0, if somebody starts it.
    #[must_use]
    pub fn observer_http(&self, index: u16) -> SocketAddr {
        self.at(OBSERVER_HTTP + 1 + index)
    }

    /// HTTPS of the newcomer, if somebody starts it.
    #[must_use]
    pub fn newcomer_http(&self) -> SocketAddr {
        self.at(NEWCOMER_HTTP)
    }

    /// Consensus of the newcomer, if somebody starts it.
    #[must_use]
    pub fn newcomer_consensus(&self) -> SocketAddr {
        self.at(NEWCOMER_CONSENSUS)
    }

    /// Health, metrics and status of the gateway.
    #[must_use]
    pub fn gateway_http(&self) -> SocketAddr {
        self.at(GATEWAY_HTTP)
    }

    /// Where devices publish.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.at(MQTT)
    }

    /// Where the gateway is a client of Mosquitto.
    #[must_use]
    pub fn mqtt_of_gateway(&self) -> SocketAddr {
        self.at(MQTT_OF_GATEWAY)
    }

    /// Where new devices show their codes to Mosquitto.
    #[must_use]
    pub fn mqtt_of_claims(&self) -> SocketAddr {
        self.at(MQTT_OF_CLAIMS)
    }

    /// The ports somebody else listens on, each with what it is wanted for. Those of other hosts are not seen from here.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let here = (0..self.nodes).filter(|i| self.node_host(*i).is_none());
        let nodes = here.flat_map(|i| {
            [("HTTPS", self.node_http(i)), ("consensus", self.node_consensus(i))]
                .map(|(what, address)| (format!("{what} of fog node {}", i + 1), address))
        });
        let gateway = [
            ("MQTT", self.mqtt()),
            ("MQTT of the gateway", self.mqtt_of_gateway()),
            ("MQTT of claims", self.mqtt_of_claims()),
            ("HTTP of the gateway", self.gateway_http()),
        ];
        let gateway = gateway.map(|(what, address)| (what.to_owned(), address));
        nodes
            .chain(gateway)
            .filter_map(|(what, address)| {
                let error = TcpListener::bind(address).err()?;
                Some(format!(
                    "port {} ({what}) cannot be used: {error}; --port-base moves all ports",
                    address.port()
                ))
            })
            .collect()
    }

    fn at(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base + offset).into()
    }

    fn node_at(&self, index: u16, offset: u16) -> SocketAddr {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let address = self.node_host(index).map_or(loopback, |host| host.address);
        (address, self.base + offset).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_are_those_of_the_design() {
        let ports = Ports::plan(BASE, 4).expect("a plan");
        let all = [
            ports.node_http(0),
            ports.node_http(3),
            ports.node_consensus(0),
            ports.gateway_http(),
            ports.mqtt(),
        ];
        assert_eq!(all.map(|a| a.port()), [8401, 8404, 8501, 8480, 18830]);
        assert!(Ports::plan(60_000, 4).is_none());
    }

    #[test]
    fn a_node_with_a_host_of_its_own_listens_there_and_the_gateway_stays_here() {
        let hosts = (2..6).map(|i| Host {
            address: Ipv4Addr::new(192, 0, 2, i).into(),
            namespace: format!("node-{i}"),
        });
        let ports = Ports::plan(BASE, 4).expect("a plan").on(hosts.collect());
        let told = [ports.node_http(0), ports.node_consensus(3), ports.mqtt()];
        assert_eq!(
            told.map(|address| address.to_string()),
            ["192.0.2.2:8401", "192.0.2.5:8504", "127.0.0.1:18830"]
        );
    }

    #[test]
    fn a_taken_port_is_named_with_its_purpose() {
        let (port, _listener) = (14_002..15_000)
            .find_map(|port| Some((port, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?)))
            .expect("one of a thousand ports is free");
        let ports = Ports::plan(port - 2, 4).expect("a plan");
        let taken = ports.taken();
        assert!(
            taken
                .iter()
                .any(|t| t.contains(&port.to_string()) && t.contains("fog node 2")),
            "{taken:?}"
        );
    }
}

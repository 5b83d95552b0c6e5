//! Where everything listens on loopback, all derived from one base, and whether those ports are free.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// The base unless `--port-base` moves it: nodes answer from 8401 on, devices publish to 18830.
pub const BASE: u16 = 8400;
/// Fog nodes in one sandbox, at most: one letter each, and their ports do not meet the gateway's.
pub const NODES_MAX: u16 = 26;

const OBSERVER_HTTP: u16 = 60;
const GATEWAY_HTTP: u16 = 80;
const CONSENSUS: u16 = 100;
const MQTT: u16 = 10_430;
/// The highest base whose ports all exist.
pub const BASE_MAX: u16 = u16::MAX - MQTT;
/// The lowest base whose ports need no privileges.
pub const BASE_MIN: u16 = 1_024;

/// The ports of one sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    base: u16,
    nodes: u16,
}

impl Ports {
    /// The ports of this many nodes above a base; `None` if there are no such ports.
    #[must_use]
    pub fn plan(base: u16, nodes: u16) -> Option<Self> {
        ((BASE_MIN..=BASE_MAX).contains(&base) && nodes <= NODES_MAX).then_some(Self { base, nodes })
    }

    /// HTTPS of node `index`, from 0.
    #[must_use]
    pub fn node_http(&self, index: u16) -> SocketAddr {
        self.at(1 + index)
    }

    /// Consensus of node `index`, from 0.
    #[must_use]
    pub fn node_consensus(&self, index: u16) -> SocketAddr {
        self.at(CONSENSUS + 1 + index)
    }

    /// HTTPS of observer `index`, from 0, if somebody starts it.
    #[must_use]
    pub fn observer_http(&self, index: u16) -> SocketAddr {
        self.at(OBSERVER_HTTP + 1 + index)
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

    /// The ports somebody else listens on, each with what it is wanted for.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let nodes = (0..self.nodes).flat_map(|i| {
            [("HTTPS", self.node_http(i)), ("consensus", self.node_consensus(i))]
                .map(|(what, address)| (format!("{what} of fog node {}", i + 1), address))
        });
        let gateway = [("MQTT", self.mqtt()), ("HTTP of the gateway", self.gateway_http())];
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

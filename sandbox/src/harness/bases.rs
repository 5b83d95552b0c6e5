//! Port bases for sandboxes that start at the same time: each is kept for one of them, also against other test runs.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

use crate::ports::Ports;

/// Bases from which a free one is drawn; the MQTT ports that belong to them lie above all others.
const BASES: Range<u16> = 50..100;
/// Distance of two bases.
const BASE_STEP: u16 = 200;
/// The port of a base that no sandbox uses: whoever listens on it has the base.
const KEPT_BY: u16 = BASE_STEP - 1;
/// How often another base is drawn.
const DRAWS: usize = 200;

/// A base that is kept for as long as this lives; the kernel gives it back whatever happens to this process.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) number: u16,
    _kept: TcpListener,
}

impl Base {
    /// Draws a base that nobody has, and on whose ports nobody listens.
    pub(super) fn draw(nodes: u16) -> Self {
        let draws = std::iter::repeat_with(|| rand::random_range(BASES) * BASE_STEP);
        let mut free = draws.take(DRAWS).filter_map(|base| Self::keep(base, nodes));
        free.next().expect("some of the ports are free")
    }

    fn keep(number: u16, nodes: u16) -> Option<Self> {
        let kept = TcpListener::bind((Ipv4Addr::LOCALHOST, number + KEPT_BY)).ok()?;
        let is_free = Ports::plan(number, nodes)?.taken().is_empty();
        is_free.then_some(Self { number, _kept: kept })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::NODES_MAX;

    #[test]
    fn a_base_is_kept_for_one() {
        let base = Base::draw(4);
        assert!(Base::keep(base.number, 4).is_none(), "somebody has it");
    }

    #[test]
    fn bases_do_not_meet_each_other_nor_the_ports_that_keep_them() {
        let mut all = std::collections::HashSet::new();
        for base in BASES.map(|number| number * BASE_STEP) {
            let ports = Ports::plan(base, NODES_MAX).expect("there are such ports");
            let nodes = (0..NODES_MAX).flat_map(|i| [ports.node_http(i), ports.node_consensus(i)]);
            let addresses = nodes.chain([ports.gateway_http(), ports.mqtt()]);
            for port in addresses.map(|address| address.port()).chain([base + KEPT_BY]) {
                assert!(all.insert(port), "{port} is used twice");
            }
        }
    }
}

//! The processes of a run, stopped from the outside in: what measures first, what agrees last.

use futures::future::{join_all, try_join_all};

use crate::{
    children::{Program, Supervised},
    client::Node,
    config::Limits,
    fault::Fault,
};

/// The processes that were started.
#[derive(Debug, Default)]
pub struct Processes {
    /// The fog nodes, in the order of the members.
    pub nodes: Vec<Supervised>,
    /// The broker, if it is a process of its own.
    pub broker: Option<Supervised>,
    /// The gateway.
    pub gateway: Option<Supervised>,
    /// The fleet of devices.
    pub fleet: Option<Supervised>,
}

impl Processes {
    /// Starts fog nodes and waits until each of them, asked over HTTP, says that it is ready.
    ///
    /// # Errors
    /// [`Fault::Start`] with the end of the log of one that does not come up.
    pub async fn start_nodes(&mut self, programs: Vec<Program>, nodes: &[Node], limits: &Limits) -> Result<(), Fault> {
        let start = |program| Supervised::start(program, limits.stop());
        self.nodes.extend(programs.into_iter().map(start));
        let ready = self.nodes.iter().zip(nodes);
        try_join_all(ready.map(|(process, node)| process.wait_until("ready", limits.start(), || node.is_ready())))
            .await?;
        Ok(())
    }

    /// Stops the fleet alone: it measures no more and waits for what is on its way.
    pub async fn stop_fleet(&mut self) -> Vec<String> {
        stop(self.fleet.take()).await
    }

    /// Stops everything; returns a sentence for each process that had to be killed or that ever broke down.
    pub async fn stop(&mut self) -> Vec<String> {
        let mut failures = self.stop_fleet().await;
        failures.extend(stop(self.gateway.take()).await);
        failures.extend(stop(self.broker.take()).await);
        failures.extend(self.stop_nodes().await);
        failures
    }

    /// Stops the fog nodes alone; they can be started again.
    pub async fn stop_nodes(&mut self) -> Vec<String> {
        let nodes = join_all(self.nodes.drain(..).map(|node| stop(Some(node)))).await;
        nodes.into_iter().flatten().collect()
    }
}

async fn stop(process: Option<Supervised>) -> Vec<String> {
    match process {
        Some(process) => process.stop().await,
        None => Vec::new(),
    }
}

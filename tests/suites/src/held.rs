//! What a node holds at a moment and connections must give back: entries of maps, descriptors, tasks,
//! threads.

use std::collections::BTreeMap;

use ambit_harness::{Node, Objects, eventually};
use anyhow::{Context, Result, ensure};

/// The maps that have an entry for a connection while it is open, or being made.
const PER_CONNECTION: [&str; 3] = ["FLOWS", "LINK_FLOWS", "HANDOFFS"];

/// What the connection to the CA takes.
pub const CA_DESCRIPTORS: u64 = 1;
const CA_TASKS: u64 = 2;

/// Counts that are the same again once every connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Entries of the instance's hash maps.
    pub maps: BTreeMap<String, usize>,
    /// Programs, links and maps in the kernel.
    pub kernel: [usize; 3],
    pub descriptors: u64,
    /// Tasks of the runtime.
    pub tasks: u64,
    /// Entries of `/connections`.
    pub open: usize,
}

impl Held {
    /// What the node holds now.
    pub fn by(node: &Node) -> Result<Self> {
        let open = node.connections()?.as_array().context("a list")?.len();
        let objects = Objects::pinned(&node.pins())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        let tasks = node.metrics()?.sum("ambit_runtime_tasks", &[]) as u64;
        Ok(Self {
            maps: node.map_entries()?,
            kernel: [objects.programs.len(), objects.links.len(), objects.maps.len()],
            descriptors: node.ztunnel.descriptors()?,
            tasks,
            open,
        })
    }

    /// What the node holds once nothing is open any more.
    pub fn at_rest(node: &Node) -> Result<Self> {
        eventually(&format!("nothing is open at {}", node.name), || {
            let held = Self::by(node)?;
            ensure!(held.open == 0, "{} connections", held.open);
            for map in PER_CONNECTION {
                let entries = held.maps.get(map).with_context(|| format!("no map {map}"))?;
                ensure!(*entries == 0, "{entries} entries in {map}");
            }
            Ok(held)
        })
    }

    /// Waits until the node holds this again, whether its connection to the CA is open or not: that is made
    /// when a certificate is asked for, and lost with the controller. Two descriptors more are a leak.
    pub fn again_but_for_the_ca(&self, node: &Node) -> Result<()> {
        self.again_within(node, CA_DESCRIPTORS, CA_TASKS)
    }

    /// Waits until the node holds this again, no more and no less.
    pub fn again(&self, node: &Node) -> Result<()> {
        self.again_within(node, 0, 0)
    }

    fn again_within(&self, node: &Node, descriptors: u64, tasks: u64) -> Result<()> {
        eventually(&format!("{} holds what it held before", node.name), || {
            let now = Self::by(node)?;
            let close = now.descriptors.abs_diff(self.descriptors) <= descriptors
                && now.tasks.abs_diff(self.tasks) <= tasks;
            let same = Self { descriptors: self.descriptors, tasks: self.tasks, ..now.clone() } == *self;
            ensure!(close && same, "before: {self:?}\nnow: {now:?}");
            Ok(())
        })
    }
}

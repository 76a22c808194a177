//! Which path connections took, as the destination's daemon reports; and waiting until a daemon enforces
//! what was written.

use std::net::SocketAddr;

use ambit_harness::{Lab, Node, Place, eventually};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::talk::{Answer, ask};

/// The record of one finished connection that a node's pods received, by its client's end.
pub fn inbound(node: &Node, mark: u64, client: SocketAddr) -> Result<Value> {
    let wanted = client.to_string();
    eventually(&format!("{} has a record of {wanted}", node.name), || {
        let records = node.records_since(mark);
        let ours =
            |record: &&Value| record["direction"] == "inbound" && record["src.addr"] == wanted.as_str();
        records.iter().find(ours).cloned().with_context(|| format!("none among {}", records.len()))
    })
}

/// The client's end of an exchange, as both sides see it.
pub fn client_end(answer: &Answer) -> SocketAddr {
    SocketAddr::new(answer.saw, answer.port)
}

/// Asks once, and by which path the answer came.
pub fn ask_and_trace(node: &Node, client: &Place, to: SocketAddr) -> Result<String> {
    let mark = node.ztunnel.log_mark();
    let answer = ask(client, to)?;
    let record = inbound(node, mark, client_end(&answer))?;
    Ok(record["path"].as_str().context("a record without a path")?.to_owned())
}

/// Makes connections until one is direct: the kernel has a cached verdict for this pair, address and port.
pub fn warm(node: &Node, client: &Place, to: SocketAddr) -> Result<()> {
    eventually(&format!("connections to {to} are direct"), || {
        let path = ask_and_trace(node, client, to)?;
        ensure!(path == "direct", "the last one's path was {path}");
        Ok(())
    })
}

/// Waits until a daemon's state, as `/config_dump` shows it, is as wanted, and in force for new connections,
/// also where the kernel decides.
pub fn enforces(node: &Node, what: &str, mut check: impl FnMut(&Value) -> Result<()>) -> Result<()> {
    eventually(&format!("{} enforces {what}", node.name), || {
        let dump = node.config_dump()?;
        check(&dump)?;
        ensure!(dump["enforced"] == true, "it knows, but it is not in force yet");
        Ok(())
    })
}

/// The names of the policies in a dump.
pub fn policies(dump: &Value) -> Vec<&str> {
    let all = dump["policies"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|policy| policy["key"].as_str()).collect()
}

/// The names of the policies that select a workload in a dump.
pub fn policies_of<'a>(dump: &'a Value, uid: &str) -> Vec<&'a str> {
    let all = dump["workloads"].as_array().map(Vec::as_slice).unwrap_or_default();
    let workload = all.iter().find(|workload| workload["uid"] == uid);
    let names = workload.and_then(|workload| workload["policies"].as_array());
    names.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Waits until a policy is in force at a pod's node. Selectors arrive with the workload: `selected` says
/// whether it has one.
pub fn policy_in_force(lab: &Lab, pod: &str, policy: &str, selected: bool) -> Result<()> {
    let pod = lab.pod(pod);
    enforces(lab.node_of(&pod), policy, |dump| {
        ensure!(policies(dump).contains(&policy), "the policy is not known");
        let listed = policies_of(dump, &pod.spec.uid()).contains(&policy);
        ensure!(listed == selected, "listed by the workload: {listed}");
        Ok(())
    })
}

/// Waits until no policy is in force at a pod's node.
pub fn no_policy_in_force(lab: &Lab, pod: &str) -> Result<()> {
    let pod = lab.pod(pod);
    enforces(lab.node_of(&pod), "no policy", |dump| {
        let (all, own) = (policies(dump), policies_of(dump, &pod.spec.uid()));
        ensure!(all.is_empty() && own.is_empty(), "{all:?}, {own:?}");
        Ok(())
    })
}

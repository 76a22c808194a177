//! Enrolled pods: their names, listeners and inbound rules.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd};

use ambit_abi::{
    InboundMode, ListenerKey, ListenerSlot, NamespaceTag, NetnsCookie, Pod, PodName, PortKey, PortRule,
    RefusalBudget, WorkloadNumber, limits, names,
};

use crate::enrolled::Enrolled;
use crate::pins::inbound_link;
use crate::{Dataplane, Error, clock, older, socket};

/// A daemon's listeners for one pod. Where there is none, connections that need it are refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listeners<'a> {
    /// Listening socket on 127.0.0.1 in the pod's namespace, for captured connections.
    pub outbound_v4: Option<BorrowedFd<'a>>,
    /// Listening socket on `::1` in the pod's namespace, for captured connections.
    pub outbound_v6: Option<BorrowedFd<'a>>,
    /// Listening socket in the pod's namespace for tunnels over IPv4.
    pub hbone_v4: Option<BorrowedFd<'a>>,
    /// Listening socket in the pod's namespace for tunnels over IPv6.
    pub hbone_v6: Option<BorrowedFd<'a>>,
    /// Listening socket in the pod's namespace for plaintext over IPv4 that must be checked.
    pub plaintext_v4: Option<BorrowedFd<'a>>,
    /// Listening socket in the pod's namespace for plaintext over IPv6 that must be checked.
    pub plaintext_v6: Option<BorrowedFd<'a>>,
}

impl<'a> Listeners<'a> {
    /// In the order of [`ListenerSlot::ALL`].
    pub(crate) fn slots(&self) -> [Option<BorrowedFd<'a>>; 6] {
        [
            self.hbone_v4,
            self.hbone_v6,
            self.plaintext_v4,
            self.plaintext_v6,
            self.outbound_v4,
            self.outbound_v6,
        ]
    }
}

/// How plaintext that arrives at a pod is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The mode of ports that are not in `ports`.
    pub default: InboundMode,
    /// Modes of single ports.
    pub ports: BTreeMap<u16, InboundMode>,
    /// Ports that the node itself may reach in any mode.
    pub probe_ports: BTreeSet<u16>,
}

/// A pod's port rules. `excluded`: destination ports of its own connections that are not captured.
fn rules(inbound: &Inbound, excluded: &BTreeSet<u16>) -> BTreeMap<u16, PortRule> {
    let mut rules: BTreeMap<u16, PortRule> = BTreeMap::new();
    for (port, mode) in &inbound.ports {
        rules.entry(*port).or_default().mode = *mode as u8;
    }
    for port in &inbound.probe_ports {
        rules.entry(*port).or_default().probe = 1;
    }
    for port in excluded {
        rules.entry(*port).or_default().excluded = 1;
    }
    rules
}

impl Dataplane {
    /// Reads the state of an earlier daemon.
    pub(crate) fn read_enrolled(&self) -> Result<(), Error> {
        let mut enrolled = self.enrolled.lock();
        for cookie in self.pods.keys()? {
            enrolled.insert(cookie, Enrolled::default());
        }
        for key in self.ports.keys()? {
            if let (Some(pod), Some(rule), Ok(port)) =
                (enrolled.get_mut(&key.netns), self.ports.get(&key)?, u16::try_from(key.port))
            {
                pod.rules.insert(port, rule);
            }
        }
        Ok(())
    }

    /// The enrolled pods, including those of earlier daemons of the instance, with their workloads.
    pub fn pods(&self) -> Result<Vec<(NetnsCookie, String)>, Error> {
        let mut pods = Vec::new();
        for cookie in self.pod_names.keys()? {
            if let Some(name) = self.pod_names.get(&cookie)? {
                pods.push((cookie, text(&name)));
            }
        }
        Ok(pods)
    }

    /// The enrolments' numbers, including those of earlier daemons of the instance, with their workloads.
    pub fn workload_numbers(&self) -> Result<Vec<(WorkloadNumber, String)>, Error> {
        let mut numbers = Vec::new();
        for (cookie, uid) in self.pods()? {
            if let Some(pod) = self.pods.get(&cookie)? {
                numbers.push((pod.number, uid));
            }
        }
        Ok(numbers)
    }

    /// Enrols a pod that is not enrolled yet, and returns the number of the enrolment. From here on the pod's
    /// connections to captured destinations are refused until there are listeners, and inbound plaintext is
    /// checked.
    pub fn enrol(
        &self,
        netns: BorrowedFd<'_>,
        cookie: NetnsCookie,
        uid: &str,
    ) -> Result<WorkloadNumber, Error> {
        let name = name(uid)?;
        let _lock = self.pins.lock()?;
        let mut enrolled = self.enrolled.lock();
        let known = self.pods.get(&cookie)?;
        // The name is written first and removed last: if the daemon dies in between, the next one finds the
        // pod and can release it.
        self.pod_names.put(&cookie, &name)?;
        self.pod_handoffs.put_new(&cookie, &0)?;
        self.pod_flows.put_new(&cookie, &0)?;
        self.pod_link_flows.put_new(&cookie, &0)?;
        self.pod_refusals.put_new(&cookie, &RefusalBudget::default())?;
        let number = match known {
            Some(pod) => pod.number,
            None => self.new_number()?,
        };
        self.generations.put_new(&number, &1)?;
        if known.is_some() {
            enrolled.entry(cookie).or_default();
        } else {
            let pod = Pod { mode: InboundMode::Check as u8, number, ..Pod::default() };
            self.pods.put(&cookie, &pod)?;
            enrolled.insert(cookie, Enrolled::default());
        }
        let attached = self.object.attach_inbound(&self.pins, netns, cookie);
        if attached.is_err() && known.is_none() {
            enrolled.remove(&cookie);
            self.remove_pod(cookie)?;
        }
        attached?;
        self.inbound_links.lock().insert(cookie, self.object.inbound_link(&self.pins, cookie)?);
        Ok(number)
    }

    /// Sets the namespace of a pod, by which destinations are captured that not all namespaces see.
    pub fn set_namespace(&self, cookie: NetnsCookie, namespace: &str) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        self.change_pod(cookie, |pod| pod.namespace = NamespaceTag::of(namespace))
    }

    /// Sets the daemon's listeners for a pod.
    pub fn set_listeners(&self, cookie: NetnsCookie, listeners: &Listeners<'_>) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        let enrolled = self.enrolled.lock();
        if !enrolled.contains_key(&cookie) {
            return Err(Error::NotEnrolled(cookie));
        }
        for (slot, socket) in ListenerSlot::ALL.into_iter().zip(listeners.slots()) {
            let key = ListenerKey::new(cookie, slot);
            match socket {
                Some(socket) => self.write_listener(key, socket)?,
                None => self.listeners.remove(&key)?,
            }
        }
        let port = |listener: Option<BorrowedFd<'_>>| listener.map_or(Ok(0), socket::port);
        let port = |listener| {
            port(listener).map_err(|source| Error::Map { operation: "write to", map: names::PODS, source })
        };
        let (v4, v6) = (port(listeners.outbound_v4)?, port(listeners.outbound_v6)?);
        self.change_pod(cookie, |pod| {
            pod.outbound_v4 = v4;
            pod.outbound_v6 = v6;
        })?;
        older::release(&self.settings, cookie)
    }

    /// Writes a listener, marked first: no connection that it accepts may be mistaken for an app's.
    pub(crate) fn write_listener(&self, key: ListenerKey, listener: BorrowedFd<'_>) -> Result<(), Error> {
        let descriptor = listener.as_raw_fd();
        self.own.put(&descriptor, &1)?;
        self.listeners.put(&key, &u64::from(descriptor.cast_unsigned()))
    }

    /// The pods that are enrolled, by what this daemon and its predecessors wrote.
    pub(crate) fn enrolled_cookies(&self) -> Result<BTreeSet<NetnsCookie>, Error> {
        self.pod_names.keys()
    }

    /// Voids the cached verdicts of a pod that is about to end, for good: its address may be another's soon.
    /// It stays enrolled until it is released. A pod that is not enrolled is no error.
    pub fn end(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        match self.pods.get(&cookie)? {
            Some(pod) => self.generations.remove(&pod.number),
            None => Ok(()),
        }
    }

    /// Sets how inbound plaintext is treated, and the destination ports excluded from capture. Each port
    /// changes from its old rule to its new one directly. If the map has no room for all rules, ports without
    /// one are checked by the daemon.
    pub fn set_ports(
        &self,
        cookie: NetnsCookie,
        inbound: &Inbound,
        excluded: &BTreeSet<u16>,
    ) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        let mut enrolled = self.enrolled.lock();
        let all: usize = enrolled.values().map(|pod| pod.rules.len()).sum();
        let held = enrolled.get_mut(&cookie).ok_or(Error::NotEnrolled(cookie))?;
        let wanted = rules(inbound, excluded);
        // As many as are free, with its own: one pod that declares every port leaves half to the others.
        let share = (limits::PORTS as usize).saturating_sub(all - held.rules.len()) / 2;
        let mut failed = None;
        for (port, rule) in &wanted {
            if held.rules.get(port) != Some(rule) {
                if !held.rules.contains_key(port) && held.rules.len() >= share {
                    failed = Some(Error::ShareUsed { map: names::PORTS, share });
                    continue;
                }
                match self.ports.put(&PortKey::new(cookie, *port), rule) {
                    Ok(()) => drop(held.rules.insert(*port, *rule)),
                    Err(error) => failed = Some(error),
                }
            }
        }
        let mode = if failed.is_none() { inbound.default } else { InboundMode::Check };
        self.change_pod(cookie, |pod| {
            pod.mode = mode as u8;
            pod.flags = if excluded.is_empty() { 0 } else { Pod::EXCLUDES };
        })?;
        let stale: Vec<u16> = held.rules.keys().copied().filter(|port| !wanted.contains_key(port)).collect();
        for port in stale {
            self.ports.remove(&PortKey::new(cookie, port))?;
            held.rules.remove(&port);
        }
        failed.map_or(Ok(()), Err)
    }

    /// As [`Dataplane::set_ports`], without excluded ports.
    pub fn set_inbound(&self, cookie: NetnsCookie, inbound: &Inbound) -> Result<(), Error> {
        self.set_ports(cookie, inbound, &BTreeSet::new())
    }

    /// Releases a pod: none of its connections are captured any more. A pod that is not enrolled is no error.
    pub fn release(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        let mut enrolled = self.enrolled.lock();
        self.remove_pod(cookie)?;
        enrolled.remove(&cookie);
        Ok(())
    }

    /// Changes some fields, under the lock, and keeps the others: during an upgrade another daemon may have
    /// written them.
    fn change_pod(&self, cookie: NetnsCookie, change: impl FnOnce(&mut Pod)) -> Result<(), Error> {
        let now = self.pods.get(&cookie)?.ok_or(Error::NotEnrolled(cookie))?;
        let mut wanted = now;
        change(&mut wanted);
        if wanted != now && !self.pods.replace(&cookie, &wanted)? {
            return Err(Error::NotEnrolled(cookie));
        }
        Ok(())
    }

    /// A number greater than all in the maps, even if another daemon's clock was ahead.
    fn new_number(&self) -> Result<WorkloadNumber, Error> {
        let held = self.generations.keys()?.last().copied().unwrap_or_default();
        clock::fresh(held.0).map(WorkloadNumber)
    }

    /// Removes all entries of a pod. It can be repeated after an interruption: the pod's entry is removed
    /// after those that are found by it, and its name last.
    fn remove_pod(&self, cookie: NetnsCookie) -> Result<(), Error> {
        self.inbound_links.lock().remove(&cookie);
        for link in self.pins.links(&inbound_link(cookie))? {
            link.remove()?;
        }
        if let Some(pod) = self.pods.get(&cookie)? {
            self.remove_enrolment(pod.number)?;
        }
        self.pods.remove(&cookie)?;
        for slot in ListenerSlot::ALL {
            self.listeners.remove(&ListenerKey::new(cookie, slot))?;
        }
        for key in self.ports.keys()?.into_iter().filter(|key| key.netns == cookie) {
            self.ports.remove(&key)?;
        }
        self.pod_handoffs.remove(&cookie)?;
        self.pod_flows.remove(&cookie)?;
        self.pod_link_flows.remove(&cookie)?;
        self.pod_refusals.remove(&cookie)?;
        self.pod_names.remove(&cookie)
    }
}

fn name(uid: &str) -> Result<PodName, Error> {
    let too_long = || Error::NameTooLong(uid.to_owned());
    let mut name =
        PodName { length: u32::try_from(uid.len()).map_err(|_| too_long())?, bytes: [0; PodName::CAPACITY] };
    name.bytes.get_mut(..uid.len()).ok_or_else(too_long)?.copy_from_slice(uid.as_bytes());
    Ok(name)
}

fn text(name: &PodName) -> String {
    let length = usize::try_from(name.length).unwrap_or(PodName::CAPACITY).min(PodName::CAPACITY);
    String::from_utf8_lossy(&name.bytes[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_names_round_trip() {
        let longest = "x".repeat(PodName::CAPACITY);
        for uid in ["Kubernetes//Pod/shop/cart", "", "näme", longest.as_str()] {
            assert_eq!(text(&name(uid).expect("a name")), uid);
        }
        assert!(matches!(name(&"x".repeat(PodName::CAPACITY + 1)), Err(Error::NameTooLong(_))));
    }

    #[test]
    fn rules_combine_modes_probes_and_exclusions() {
        let inbound = Inbound {
            default: InboundMode::Check,
            ports: [(80, InboundMode::Open), (443, InboundMode::Strict)].into(),
            probe_ports: [443, 8080].into(),
        };
        let rule = |mode, probe, excluded| PortRule { mode, probe, excluded, reserved: 0 };
        let expected =
            [(80, rule(1, 0, 0)), (443, rule(3, 1, 1)), (3306, rule(0, 0, 1)), (8080, rule(0, 1, 0))];
        assert_eq!(rules(&inbound, &[443, 3306].into()), expected.into());
    }
}

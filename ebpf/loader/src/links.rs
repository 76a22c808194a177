//! The links of enrolled pods, as the kernel programs know them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ambit_abi::{HardwareAddress, LinkEntry, LinkKind, NetnsCookie, WorkloadNumber, names};

use crate::bpf::{self, Hook};
use crate::difference::Difference;
use crate::held::Held;
use crate::pins::link_program;
use crate::{Dataplane, Error, clock, object};

/// A pod's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its kind.
    pub kind: LinkKind,
    /// The index of the interface at the node's end; 0: not known.
    pub interface: u32,
    /// The address of the pod's interface.
    pub pod: HardwareAddress,
    /// The address of the bridge that the node's end is a port of.
    pub bridge: Option<HardwareAddress>,
}

impl Dataplane {
    /// Sets a pod's link. None: it is of an unknown kind, and no connection of the pod is direct.
    pub fn set_link(&self, number: WorkloadNumber, link: Option<&PodLink>) -> Result<(), Error> {
        let Some(link) = link else { return self.links.remove(&number) };
        let entry = LinkEntry {
            interface: link.interface,
            kind: link.kind as u8,
            pod: link.pod,
            bridge: link.bridge.unwrap_or_default(),
            ..LinkEntry::default()
        };
        // A pod that has just been released has no generation: nothing may be left of it.
        self.links.put(&number, &entry)?;
        if self.generations.get(&number)?.is_none() { self.links.remove(&number) } else { Ok(()) }
    }

    /// Attaches the programs that a shared link needs to the interface at the node's end, unless they are
    /// there. The calling thread must be in the node's network namespace.
    pub fn attach_link(&self, interface: u32) -> Result<(), Error> {
        let _lock = self.pins.lock()?;
        let mut held = self.shared_links.lock();
        for ((_, name), held) in held.iter_mut().filter(|((at, _), _)| *at == interface) {
            // The next look tells it: without that, what somebody detached would be attached again unseen.
            link_right(interface, name, held, &mut self.repaired.lock())?;
        }
        self.object.attach_link(&self.pins, &self.link_programs, interface)?;
        for name in names::LINK_PROGRAMS {
            held.insert((interface, name), self.object.shared_link(&self.pins, name, interface)?);
        }
        Ok(())
    }

    /// Compares the programs of shared links with what should be there, and puts right what differs. Returns
    /// those on which programs of others are too, so that they are to be classified again. The calling thread
    /// must be in the node's network namespace.
    pub fn put_links_right(
        &self,
        interfaces: &BTreeSet<u32>,
        found: &mut Vec<Difference>,
    ) -> Result<BTreeSet<u32>, Error> {
        let _lock = self.pins.lock()?;
        let mut links = self.shared_links.lock();
        let mut foreign = BTreeSet::new();
        let ours = links.iter_mut().filter(|((interface, _), _)| interfaces.contains(interface));
        for ((interface, name), held) in ours {
            if link_right(*interface, name, held, found)? {
                foreign.insert(*interface);
            }
        }
        Ok(foreign)
    }

    /// The ids of others' programs (tcx) at the node's end of a link. The calling thread must be in the
    /// node's network namespace.
    pub fn foreign_link_programs(&self, interface: u32) -> Result<BTreeSet<u32>, Error> {
        let mut found = BTreeSet::new();
        for (name, hook) in names::LINK_PROGRAMS.into_iter().zip([Hook::LinkIngress, Hook::LinkEgress]) {
            match bpf::interface_programs(interface, hook) {
                Ok(programs) => found.extend(programs),
                // Before Linux 6.6 there is no such hook.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(source) => return Err(Error::Attach { program: name, source }),
            }
            for link in self.pins.links(&link_program(name, interface))? {
                if let Ok(own) = bpf::open_pin(&link.path).and_then(|link| bpf::link_program(&link)) {
                    found.remove(&own);
                }
            }
        }
        Ok(found)
    }

    /// Removes what the programs on shared links know of connections both ends of which closed some time
    /// ago, and the programs of links that no pod and no connection needs any more.
    pub fn sweep_links(&self, linger: Duration) -> Result<(), Error> {
        let before = clock::monotonic()?.saturating_sub(u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX));
        let mut needed = BTreeSet::new();
        let mut held: BTreeMap<NetnsCookie, u64> = BTreeMap::new();
        for (tuple, flow) in self.link_flows.entries()? {
            if flow.has_ended() && flow.closed < before {
                self.link_flows.remove(&tuple)?;
                continue;
            }
            needed.extend([flow.client_interface, flow.server_interface]);
            for netns in [flow.client_netns, NetnsCookie::ALL] {
                *held.entry(netns).or_default() += 1;
            }
        }
        for (netns, counted) in self.pod_link_flows.entries()? {
            // What was tracked meanwhile is counted with the next sweep.
            let now = held.get(&netns).copied().unwrap_or_default();
            if now != counted {
                self.pod_link_flows.replace(&netns, &now)?;
            }
        }
        let _lock = self.pins.lock()?;
        let shared = |entry: &LinkEntry| entry.kind == LinkKind::Shared as u8;
        let links = self.links.entries()?;
        needed.extend(links.iter().filter(|(_, entry)| shared(entry)).map(|(_, entry)| entry.interface));
        self.shared_links.lock().retain(|(interface, _), _| needed.contains(interface));
        for link in self.pins.all_links()? {
            let interface = names::LINK_PROGRAMS.iter().find_map(|program| {
                let rest = link.name().strip_prefix(program)?.strip_prefix('-')?;
                rest.split_once('-')?.0.parse::<u32>().ok()
            });
            if interface.is_some_and(|interface| !needed.contains(&interface)) {
                link.remove()?;
            }
        }
        Ok(())
    }
}

/// Puts the program on one hook of a shared link right; whether programs of others are there, too.
fn link_right(
    interface: u32,
    name: &'static str,
    held: &mut Held,
    found: &mut Vec<Difference>,
) -> Result<bool, Error> {
    let hook = object::hook(name).ok_or(Error::Missing(name))?;
    let programs = match bpf::interface_programs(interface, hook) {
        Ok(programs) => programs,
        // The interface is gone, and its pod with it.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        Err(source) => return Err(Error::Attach { program: name, source }),
    };
    let foreign = programs.iter().any(|program| !held.runs(*program));
    let first = held.is_first(&programs, |_| false);
    held.put_right(
        first,
        |program: &OwnedFd| object::attach_to_interface(program, interface, name, hook),
        found,
    )?;
    Ok(foreign)
}

//! What is in the kernel, compared with what should be there and put right: [`Dataplane::put_right`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ambit_abi::{Daemon, ListenerKey, ListenerSlot, NetnsCookie, RefusalBudget, names};

use crate::bpf::{self, Hook};
use crate::difference::{Difference, Found};
use crate::held::Held;
use crate::pods::Listeners;
use crate::{Dataplane, Error, clock, object, socket};

/// A newer daemon that has not looked for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// An enrolled pod that this daemon serves.
#[derive(Debug)]
pub struct Served<'a> {
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// The namespace's cookie.
    pub cookie: NetnsCookie,
    /// The daemon's listeners in it.
    pub listeners: Listeners<'a>,
}

/// The outcome of one look.
#[derive(Debug, Default)]
pub struct Look {
    /// What differed. It has been put right, unless there are errors.
    pub found: Vec<Difference>,
    /// What could not be compared or put right.
    pub errors: Vec<Error>,
    /// Another, newer daemon of the instance looks after the kernel.
    pub stands_by: bool,
}

impl Look {
    fn part(&mut self, part: impl FnOnce(&mut Vec<Difference>) -> Result<(), Error>) {
        if let Err(error) = part(&mut self.found) {
            self.errors.push(error);
        }
    }
}

impl Dataplane {
    /// Compares the kernel's maps, links and pins with what this daemon wrote, and puts right what differs.
    /// Of pods that an earlier daemon enrolled and this one does not serve yet, only their entries.
    pub fn put_right(&self, served: &[Served<'_>]) -> Look {
        let mut look = Look::default();
        // Before anything is made again: the instance may have been detached.
        if self.is_newest().is_ok_and(|newest| !newest) {
            if self.is_detached() {
                // Nothing of it is to be left, also while this process goes on.
                self.cgroup_links.lock().clear();
                self.inbound_links.lock().clear();
                self.shared_links.lock().clear();
            }
            return Look { stands_by: true, ..look };
        }
        if let Err(error) = self.pins.create_again() {
            look.errors.push(error);
            return look;
        }
        let lock = match self.pins.lock() {
            Ok(lock) => lock,
            Err(error) => {
                look.errors.push(error);
                return look;
            }
        };
        match self.is_newest() {
            Ok(true) => {}
            Ok(false) => return Look { stands_by: true, ..look },
            Err(error) => look.errors.push(error),
        }
        let enrolled = self.enrolled.lock();
        look.found.append(&mut self.repaired.lock());
        look.part(|found| self.pins_right(found));
        look.part(|found| self.cgroup_links_right(found));
        let served: BTreeMap<NetnsCookie, &Served<'_>> = served
            .iter()
            .filter(|pod| enrolled.contains_key(&pod.cookie))
            .map(|pod| (pod.cookie, pod))
            .collect();
        for pod in served.values() {
            look.part(|found| self.inbound_link_right(pod, found));
        }
        // Numbers, rules and names first: with its entry a pod is enrolled again.
        look.part(|found| self.generations_right(found));
        look.part(|found| self.ports.put_right(exactly, as_written, found));
        look.part(|found| self.pod_names.put_right(exactly, as_written, found));
        look.part(|found| self.counts_right(found));
        look.part(|found| {
            let same =
                |cookie: &NetnsCookie, wanted: &_, is: &_| !served.contains_key(cookie) || wanted == is;
            self.pods.put_right(same, as_written, found)
        });
        for pod in served.values() {
            look.part(|found| self.listeners_right(pod, found));
        }
        look.part(|found| self.parts.put_right(exactly, as_written, found));
        look.part(|found| self.destinations_incomplete.put_right(exactly, as_written, found));
        look.part(|found| self.destinations.put_right(exactly, as_written, found));
        look.part(|found| self.links.put_right(exactly, as_written, found));
        look.part(|found| self.host.put_right(exactly, as_written, found));
        look.part(|found| self.locals.put_right(exactly, as_written, found));
        look.part(|found| self.services.put_right(exactly, as_written, found));
        look.part(|found| self.endpoints.put_right(exactly, as_written, found));
        drop(enrolled);
        drop(lock);
        look
    }

    /// Claims the instance for this daemon, unless a newer one lives.
    pub(crate) fn is_newest(&self) -> Result<bool, Error> {
        let now = clock::monotonic()?;
        let newest = self.daemon.get(&0)?.unwrap_or_default();
        let gone = u64::try_from(GONE_AFTER.as_nanos()).unwrap_or(u64::MAX);
        if newest.number > self.number && newest.at.saturating_add(gone) > now {
            return Ok(false);
        }
        self.daemon.put(&0, &Daemon { number: self.number, at: now })?;
        Ok(true)
    }

    /// Whether [`detach`](crate::detach()) has been called.
    fn is_detached(&self) -> bool {
        self.daemon.get(&0).is_ok_and(|daemon| daemon.is_some_and(|daemon| daemon.number == u64::MAX))
    }

    /// Maps' pins, which the next daemon finds them by.
    fn pins_right(&self, found: &mut Vec<Difference>) -> Result<(), Error> {
        for (name, map) in self.all_maps() {
            let path = self.pins.path(name);
            if !path.exists() {
                bpf::pin(&map, &path).map_err(|source| Error::Pin { operation: "pin map", path, source })?;
                found.push(Difference::new("pin", name, "missing"));
            }
        }
        Ok(())
    }

    fn cgroup_links_right(&self, found: &mut Vec<Difference>) -> Result<(), Error> {
        let cgroup = fs::File::open(&self.cgroup)
            .map_err(|source| Error::Cgroup { path: self.cgroup.clone(), source })?;
        for (name, held) in self.cgroup_links.lock().iter_mut() {
            let hook = object::hook(name).ok_or(Error::Missing(name))?;
            let first = !object::is_ordered() || self.is_first(&cgroup, name, hook, held)?;
            held.put_right(first, |program| object::attach_to_cgroup(program, &self.cgroup, name), found)?;
        }
        Ok(())
    }

    /// Whether only programs of other instances of Ambit run before ours.
    fn is_first(&self, cgroup: &fs::File, name: &str, hook: Hook, held: &Held) -> Result<bool, Error> {
        let path = || self.cgroup.clone();
        let programs =
            bpf::programs(cgroup, hook).map_err(|source| Error::Cgroup { path: path(), source })?;
        let ours = &name[..name.len().min(15)];
        Ok(held.is_first(&programs, |program| bpf::program_name(program).is_ok_and(|it| it == ours)))
    }

    fn inbound_link_right(&self, pod: &Served<'_>, found: &mut Vec<Difference>) -> Result<(), Error> {
        let mut links = self.inbound_links.lock();
        let Some(held) = links.get_mut(&pod.cookie) else { return Ok(()) };
        held.put_right(true, |program| object::attach_to_namespace(program, &pod.netns), found)
    }

    /// A generation that is missing or older than it was is renewed, which voids the verdicts of its
    /// destination; a newer one is another daemon's.
    fn generations_right(&self, found: &mut Vec<Difference>) -> Result<(), Error> {
        let renewed = |_: &_, held: &u64| clock::fresh(*held);
        self.generations.put_right(|_, wanted, is| is >= wanted, renewed, found)
    }

    /// Counts of a pod's entries, which the kernel changes: missing ones start again.
    fn counts_right(&self, found: &mut Vec<Difference>) -> Result<(), Error> {
        for (counts, _) in self.counted() {
            if counts.get(&NetnsCookie::ALL)?.is_none() {
                self.count_all()?;
                found.push(Difference::entry(counts.name(), &NetnsCookie::ALL, &Found::<u64>::Missing));
            }
        }
        for cookie in self.enrolled_cookies()? {
            for (counts, _) in self.counted() {
                if counts.get(&cookie)?.is_none() {
                    counts.put_new(&cookie, &0)?;
                    found.push(Difference::entry(counts.name(), &cookie, &Found::<u64>::Missing));
                }
            }
            if self.pod_refusals.get(&cookie)?.is_none() {
                self.pod_refusals.put_new(&cookie, &RefusalBudget::default())?;
                found.push(Difference::entry(self.pod_refusals.name(), &cookie, &Found::<u64>::Missing));
            }
        }
        Ok(())
    }

    fn listeners_right(&self, pod: &Served<'_>, found: &mut Vec<Difference>) -> Result<(), Error> {
        for (slot, listener) in ListenerSlot::ALL.into_iter().zip(pod.listeners.slots()) {
            let Some(listener) = listener else { continue };
            let key = ListenerKey::new(pod.cookie, slot);
            let failed =
                |source: io::Error| Error::Map { operation: "compare", map: names::LISTENERS, source };
            let wanted = socket::cookie(listener).map_err(failed)?;
            let difference = match self.listeners.get(&key)? {
                Some(cookie) if cookie == wanted => continue,
                Some(cookie) => Found::Changed(cookie),
                None => Found::Missing,
            };
            self.write_listener(key, listener)?;
            found.push(Difference::entry(names::LISTENERS, &(pod.cookie, slot), &difference));
        }
        Ok(())
    }

    /// The maps of sockets' storage. A socket that has an entry in one of them is captured, a client's of the
    /// direct path, or the daemon's own.
    pub fn socket_maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.sockets.as_fd(), self.own.as_fd()]
    }

    fn all_maps(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        vec![
            self.pods.pinned(),
            self.pod_names.pinned(),
            self.pod_handoffs.pinned(),
            self.ports.pinned(),
            self.daemon.pinned(),
            self.host.pinned(),
            self.probes.pinned(),
            self.destinations.pinned(),
            self.parts.pinned(),
            self.listeners.pinned(),
            self.handoffs.pinned(),
            self.sockets.pinned(),
            self.refusals.pinned(),
            self.generations.pinned(),
            self.verdicts.pinned(),
            self.lease.pinned(),
            self.locals.pinned(),
            self.services.pinned(),
            self.endpoints.pinned(),
            self.sticky.pinned(),
            self.flows.pinned(),
            self.pod_flows.pinned(),
            self.accepted.pinned(),
            self.own.pinned(),
            self.links.pinned(),
            self.link_flows.pinned(),
            self.pod_link_flows.pinned(),
            (names::RECORDS, self.records[0].as_fd()),
            (names::REFUSAL_RECORDS, self.records[1].as_fd()),
            self.destinations_incomplete.pinned(),
            self.pod_refusals.pinned(),
        ]
    }
}

fn exactly<K, V: PartialEq>(_: &K, wanted: &V, is: &V) -> bool {
    wanted == is
}

#[expect(clippy::unnecessary_wraps, reason = "as a value that is made anew, which may fail")]
fn as_written<K, V: Copy>(_: &K, wanted: &V) -> Result<V, Error> {
    Ok(*wanted)
}

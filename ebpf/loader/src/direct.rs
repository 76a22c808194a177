//! The direct path: cached verdicts and their invalidation, the kernel's choice of endpoints, tracked flows
//! and records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ambit_abi::{
    Address, AffinityKey, Lease, Service, SlotKey, Tuple, VerdictEntry, VerdictKey, WorkloadNumber, limits,
};
use bytemuck::Pod;
use parking_lot::Mutex;

use crate::bpf::Position;
use crate::map::{Inserted, Map};
use crate::shared::Shared;
use crate::table::{slots, socket_address};
use crate::{Dataplane, Error, Flow, Record, Table, clock};

/// A verdict of the daemon: a source may connect to an address directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The workload that may connect.
    pub source: WorkloadNumber,
    /// The workload that has the address.
    pub destination: WorkloadNumber,
    /// The destination's address and port.
    pub address: SocketAddr,
    /// The destination's generation, read before the configuration that the verdict is based on.
    pub generation: u64,
}

/// A pass over all verdicts that removes the stale ones, in steps: [`Dataplane::sweep_verdicts`].
#[derive(Debug, Default)]
pub struct VerdictSweep {
    position: Position,
    /// How many were removed.
    removed: usize,
    /// Of those that stay.
    sources: Vec<WorkloadNumber>,
}

/// Writes an entry that counts for `holder`. False: it has its share.
fn put_shared<K: Pod, V: Pod>(
    map: &Map<K, V>,
    shared: &Mutex<Shared<WorkloadNumber>>,
    holder: WorkloadNumber,
    key: &K,
    value: &V,
) -> Result<bool, Error> {
    let mut shared = shared.lock();
    if map.replace(key, value)? {
        return Ok(true);
    }
    if !shared.has_room_for(holder) {
        return Ok(false);
    }
    match map.insert(key, value)? {
        Inserted::Full => return Ok(false),
        Inserted::Exists => map.put(key, value)?,
        Inserted::New => shared.add(holder),
    }
    Ok(true)
}

/// A table without a service is one that another daemon is writing, or an incomplete one of a daemon that
/// died. After this many nanoseconds it is the latter.
const INCOMPLETE_AFTER: u64 = 60_000_000_000;

impl Dataplane {
    /// Sets a pod's own addresses.
    pub fn set_addresses(&self, number: WorkloadNumber, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let wanted: BTreeSet<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        let mut held = self.own_addresses.lock();
        for address in &wanted {
            self.locals.put(address, &number)?;
        }
        for address in held.insert(number, wanted.clone()).unwrap_or_default().difference(&wanted) {
            self.remove_address(number, address)?;
        }
        Ok(())
    }

    /// The generation of a destination's policy; none if it is not enrolled.
    pub fn generation(&self, destination: WorkloadNumber) -> Result<Option<u64>, Error> {
        self.generations.get(&destination)
    }

    /// Invalidates every cached verdict for a destination. A destination that is not enrolled is no error.
    pub fn advance_generation(&self, destination: WorkloadNumber) -> Result<(), Error> {
        // From the clock, so that two daemons at the same time never reuse a generation.
        let Some(current) = self.generations.get(&destination)? else { return Ok(()) };
        self.generations.replace(&destination, &clock::fresh(current)?).map(drop)
    }

    /// Caches a verdict in the kernel. False: its source has its share of the map, and the daemon goes on
    /// carrying the pair.
    pub fn add_verdict(&self, verdict: &Verdict) -> Result<bool, Error> {
        let key = VerdictKey::new(verdict.source, socket_address(verdict.address));
        let value = VerdictEntry { destination: verdict.destination, generation: verdict.generation };
        put_shared(&self.verdicts, &self.shared_verdicts, verdict.source, &key, &value)
    }

    /// Removes stale verdicts, and returns how many there were.
    pub fn remove_stale_verdicts(&self) -> Result<usize, Error> {
        let mut sweep = VerdictSweep::default();
        while !self.sweep_verdicts(&mut sweep)? {}
        Ok(sweep.removed)
    }

    /// Goes on with a sweep: removes the stale ones of about a thousand verdicts. True: it was the last step,
    /// and the entries of each source have been counted anew.
    pub fn sweep_verdicts(&self, sweep: &mut VerdictSweep) -> Result<bool, Error> {
        let current: BTreeMap<WorkloadNumber, u64> = self.generations.entries()?.into_iter().collect();
        let is_stale = |key: &VerdictKey, verdict: &VerdictEntry| {
            !current.contains_key(&key.source)
                || current.get(&verdict.destination) != Some(&verdict.generation)
        };
        let (batch, next) = self.verdicts.batch(sweep.position)?;
        for (key, verdict) in batch {
            if !is_stale(&key, &verdict) {
                sweep.sources.push(key.source);
            } else if self.verdicts.take(&key)? {
                sweep.removed += 1;
                self.shared_verdicts.lock().remove(key.source);
            }
        }
        if let Some(next) = next {
            sweep.position = next;
            return Ok(false);
        }
        // What was added meanwhile is missing at worst, until the next sweep.
        *self.shared_verdicts.lock() = Shared::count(limits::VERDICTS, std::mem::take(&mut sweep.sources));
        sweep.position = Position::default();
        Ok(true)
    }

    /// Lets the kernel do by itself for this long from now what the lease is for.
    pub fn renew_lease(&self, lease: Lease, time: Duration) -> Result<(), Error> {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.lease.put(&(lease as u32), &clock::monotonic()?.saturating_add(time))
    }

    /// Shortens a lease that goes on for longer than this from now.
    pub fn limit_lease(&self, lease: Lease, time: Duration) -> Result<(), Error> {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let end = clock::monotonic()?.saturating_add(time);
        match self.lease.get(&(lease as u32))? {
            Some(held) if held > end => self.lease.put(&(lease as u32), &end),
            _ => Ok(()),
        }
    }

    /// Sets how the kernel chooses an endpoint of a service.
    pub fn set_service(&self, address: SocketAddr, table: &Table) -> Result<(), Error> {
        let key = socket_address(address);
        let _one_at_a_time = self.tables.lock();
        let old = self.services.get(&key)?;
        let (endpoints, flags) = match table {
            Table::Weighted(endpoints) => (slots(endpoints), 0),
            Table::Affinity => (Vec::new(), Service::AFFINITY),
        };
        let new = Service {
            table: clock::fresh(0)?,
            slots: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
            flags,
        };
        // The service changes from one complete table to another.
        for (slot, endpoint) in (0_u32..).zip(&endpoints) {
            let written = self.endpoints.put(&SlotKey { table: new.table, slot, reserved: 0 }, endpoint);
            if written.is_err() {
                self.remove_table(new)?;
                return written;
            }
        }
        self.services.put(&key, &new)?;
        old.map_or(Ok(()), |old| self.remove_table(old))
    }

    /// Leaves the choice of a service's endpoints to the daemon. A service without a table is no error.
    pub fn remove_service(&self, address: SocketAddr) -> Result<(), Error> {
        let key = socket_address(address);
        let _one_at_a_time = self.tables.lock();
        let Some(old) = self.services.get(&key)? else { return Ok(()) };
        self.services.remove(&key)?;
        self.remove_table(old)
    }

    /// The services whose endpoints the kernel chooses.
    pub fn services(&self) -> Result<BTreeSet<SocketAddr>, Error> {
        let keys = self.services.keys()?;
        Ok(keys.into_iter().map(|key| key.address.with_port(key.port)).collect())
    }

    /// Sets a client's endpoint of a service with session affinity. False: the client has its share of the
    /// map, and the daemon goes on choosing for it.
    pub fn set_affinity(
        &self,
        source: WorkloadNumber,
        service: SocketAddr,
        endpoint: SocketAddr,
    ) -> Result<bool, Error> {
        let key = AffinityKey::new(source, socket_address(service));
        put_shared(&self.sticky, &self.shared_affinities, source, &key, &socket_address(endpoint))
    }

    /// Removes the endpoints of all clients of a service.
    pub fn clear_affinity(&self, service: SocketAddr) -> Result<(), Error> {
        let service = socket_address(service);
        self.remove_affinities(|key| key.service == service)
    }

    /// Tracked flows: open direct connections, and native ones that arrived at an enrolled pod.
    pub fn flows(&self) -> Result<Vec<Flow>, Error> {
        let flows = self.flows.entries()?;
        Ok(flows.into_iter().map(|(tuple, flow)| Flow::new(tuple, flow)).collect())
    }

    /// Whether the kernel still tracks this flow, and not another with its addresses and ports.
    pub fn tracks(&self, flow: &Flow) -> Result<bool, Error> {
        let tuple = Tuple {
            client: flow.client.ip().into(),
            server: flow.server.ip().into(),
            client_port: flow.client.port(),
            server_port: flow.server.port(),
        };
        let cookies = |flow: &Flow| (flow.client_cookie, flow.server_cookie);
        Ok(self.flows.get(&tuple)?.is_some_and(|held| cookies(&Flow::new(tuple, held)) == cookies(flow)))
    }

    /// Passes the kernel's new records to `each`, and returns how many there were.
    pub fn records(&self, each: &mut dyn FnMut(Record)) -> Result<usize, Error> {
        // During an upgrade two daemons read; each advances the shared position.
        let _lock = self.pins.lock()?;
        let mut handed = 0;
        for ring in &mut *self.rings.lock() {
            ring.drain(|record| {
                if let Some(record) = Record::new(record) {
                    handed += 1;
                    each(record);
                }
            });
        }
        Ok(handed)
    }

    /// Removes all entries of an enrolment.
    pub(crate) fn remove_enrolment(&self, number: WorkloadNumber) -> Result<(), Error> {
        // First, so that from here on no verdict for it holds.
        self.generations.remove(&number)?;
        self.links.remove(&number)?;
        self.remove_verdicts(|key, verdict| key.source == number || verdict.destination == number)?;
        self.remove_affinities(|key| key.source == number)?;
        self.own_addresses.lock().remove(&number);
        for (address, owner) in self.locals.entries()? {
            if owner == number {
                self.locals.remove(&address)?;
            }
        }
        Ok(())
    }

    /// Reads the state of an earlier daemon, and removes its incomplete tables.
    pub(crate) fn read_direct(&self) -> Result<(), Error> {
        let mut own = self.own_addresses.lock();
        for (address, number) in self.locals.entries()? {
            own.entry(number).or_default().insert(address);
        }
        let used: BTreeSet<u64> =
            self.services.entries()?.into_iter().map(|(_, service)| service.table).collect();
        let now = clock::fresh(0)?;
        for key in self.endpoints.keys()? {
            if !used.contains(&key.table) && key.table + INCOMPLETE_AFTER < now {
                self.endpoints.remove(&key)?;
            }
        }
        Ok(())
    }

    fn remove_address(&self, number: WorkloadNumber, address: &Address) -> Result<(), Error> {
        // Another pod may have the address by now.
        if self.locals.get(address)? == Some(number) { self.locals.remove(address) } else { Ok(()) }
    }

    fn remove_table(&self, service: Service) -> Result<(), Error> {
        (0..service.slots)
            .try_for_each(|slot| self.endpoints.remove(&SlotKey { table: service.table, slot, reserved: 0 }))
    }

    fn remove_verdicts(&self, stale: impl Fn(&VerdictKey, &VerdictEntry) -> bool) -> Result<(), Error> {
        for (key, verdict) in self.verdicts.entries()? {
            if stale(&key, &verdict) && self.verdicts.take(&key)? {
                self.shared_verdicts.lock().remove(key.source);
            }
        }
        Ok(())
    }

    fn remove_affinities(&self, matches: impl Fn(&AffinityKey) -> bool) -> Result<(), Error> {
        for (key, _) in self.sticky.entries()? {
            if matches(&key) && self.sticky.take(&key)? {
                self.shared_affinities.lock().remove(key.source);
            }
        }
        Ok(())
    }
}

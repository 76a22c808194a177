//! The direct path, as a daemon runs it: remembered verdicts and how they become void, the kernel's choice
//! of endpoints, open connections and records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ambit_abi::{Address, Service, SlotKey, Towards, WorkloadNumber, Yes};

use crate::table::{place, slots};
use crate::{Dataplane, Error, Flow, Record, Table, clock};

/// A yes of the daemon's, for the kernel to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who may connect.
    pub source: WorkloadNumber,
    /// To whom.
    pub destination: WorkloadNumber,
    /// The destination's address and port.
    pub address: SocketAddr,
    /// The destination's generation, read before the configuration that the verdict rests on.
    pub generation: u64,
}

/// A table that no service refers to is another daemon's that is being written, or was left half-way. After
/// this long it is the latter.
const HALF_WRITTEN: u64 = 60_000_000_000;

impl Dataplane {
    /// Says which addresses are a pod's own.
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

    /// The generation of a destination's policy; none: it is not enrolled.
    pub fn generation(&self, destination: WorkloadNumber) -> Result<Option<u64>, Error> {
        self.generations.get(&destination)
    }

    /// Makes every earlier yes towards a destination void. That it is not enrolled is no error.
    pub fn bump(&self, destination: WorkloadNumber) -> Result<(), Error> {
        // The clock, so that two daemons at once never come back to a number that one of them gave before.
        let Some(current) = self.generations.get(&destination)? else { return Ok(()) };
        self.generations.replace(&destination, &clock::fresh(current)?).map(drop)
    }

    /// Lets the kernel remember a verdict.
    pub fn remember(&self, verdict: &Verdict) -> Result<(), Error> {
        let key = Towards::new(verdict.source, place(verdict.address));
        let value = Yes { destination: verdict.destination, generation: verdict.generation };
        if self.verdicts.put_if_room(&key, &value)? {
            return Ok(());
        }
        self.forget_stale_verdicts()?;
        self.verdicts.put(&key, &value)
    }

    /// Removes verdicts that hold no longer; how many.
    pub fn forget_stale_verdicts(&self) -> Result<usize, Error> {
        let current: BTreeMap<WorkloadNumber, u64> = self.generations.entries()?.into_iter().collect();
        self.forget_verdicts(|key, yes| {
            !current.contains_key(&key.source) || current.get(&yes.destination) != Some(&yes.generation)
        })
    }

    /// From now on verdicts hold for this long.
    pub fn renew_lease(&self, lease: Duration) -> Result<(), Error> {
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.lease.put(&0, &clock::monotonic()?.saturating_add(lease))
    }

    /// Says how the kernel chooses an endpoint of a service.
    pub fn set_service(&self, address: SocketAddr, table: &Table) -> Result<(), Error> {
        let key = place(address);
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
        // The kernel sees a whole table or another one.
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

    /// Leaves the choice of a service's endpoints to the daemon. That it is so already is no error.
    pub fn remove_service(&self, address: SocketAddr) -> Result<(), Error> {
        let key = place(address);
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

    /// Gives a client of a service with affinity its endpoint.
    pub fn stick(
        &self,
        source: WorkloadNumber,
        service: SocketAddr,
        endpoint: SocketAddr,
    ) -> Result<(), Error> {
        self.sticky.put(&Towards::new(source, place(service)), &place(endpoint))
    }

    /// Forgets which endpoints a service's clients had.
    pub fn unstick(&self, service: SocketAddr) -> Result<(), Error> {
        let service = place(service);
        self.forget_sticky(|key| key.place == service)
    }

    /// Open connections that no daemon carries: direct ones, and native ones that arrived at an enrolled pod.
    pub fn flows(&self) -> Result<Vec<Flow>, Error> {
        let flows = self.flows.entries()?;
        Ok(flows.into_iter().map(|(tuple, flow)| Flow::new(tuple, flow)).collect())
    }

    /// Hands over what the kernel recorded since the last time; how much it was.
    pub fn records(&self, each: &mut dyn FnMut(Record)) -> Result<usize, Error> {
        // While one daemon takes over from another both read, and each says how far it has got.
        let _lock = self.pins.lock()?;
        let mut handed = 0;
        self.ring.lock().drain(|record| {
            if let Some(record) = Record::new(record) {
                handed += 1;
                each(record);
            }
        });
        Ok(handed)
    }

    /// Forgets everything of an enrolment.
    pub(crate) fn forget_number(&self, number: WorkloadNumber) -> Result<(), Error> {
        // First of all: from here on no verdict towards it holds.
        self.generations.remove(&number)?;
        self.forget_verdicts(|key, yes| key.source == number || yes.destination == number)?;
        self.forget_sticky(|key| key.source == number)?;
        self.own_addresses.lock().remove(&number);
        for (address, owner) in self.locals.entries()? {
            if owner == number {
                self.locals.remove(&address)?;
            }
        }
        Ok(())
    }

    /// Reads what an earlier daemon left, and clears away what it left half-way.
    pub(crate) fn read_direct(&self) -> Result<(), Error> {
        let mut own = self.own_addresses.lock();
        for (address, number) in self.locals.entries()? {
            own.entry(number).or_default().insert(address);
        }
        let used: BTreeSet<u64> =
            self.services.entries()?.into_iter().map(|(_, service)| service.table).collect();
        let now = clock::fresh(0)?;
        for key in self.endpoints.keys()? {
            if !used.contains(&key.table) && key.table + HALF_WRITTEN < now {
                self.endpoints.remove(&key)?;
            }
        }
        Ok(())
    }

    fn remove_address(&self, number: WorkloadNumber, address: &Address) -> Result<(), Error> {
        // Another pod may have it by now.
        if self.locals.get(address)? == Some(number) { self.locals.remove(address) } else { Ok(()) }
    }

    fn remove_table(&self, service: Service) -> Result<(), Error> {
        (0..service.slots)
            .try_for_each(|slot| self.endpoints.remove(&SlotKey { table: service.table, slot, reserved: 0 }))
    }

    fn forget_verdicts(&self, void: impl Fn(&Towards, &Yes) -> bool) -> Result<usize, Error> {
        let mut forgotten = 0;
        for (key, yes) in self.verdicts.entries()? {
            if void(&key, &yes) {
                self.verdicts.remove(&key)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    fn forget_sticky(&self, gone: impl Fn(&Towards) -> bool) -> Result<(), Error> {
        for key in self.sticky.keys()?.into_iter().filter(gone) {
            self.sticky.remove(&key)?;
        }
        Ok(())
    }
}

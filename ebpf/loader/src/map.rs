//! A pinned map with the types of its keys and values. The kernel does the locking.

use std::collections::BTreeSet;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::Pod;

use crate::Error;
use crate::bpf::{self, Entries, Position, Update};
use crate::pins::Pins;

/// What became of an entry that was to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    New,
    /// There is one with this key.
    Exists,
    /// The map has no room.
    Full,
}

/// A map of the data plane.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    name: &'static str,
    descriptor: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Map<K, V> {
    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Its name and descriptor.
    pub(crate) fn pinned(&self) -> (&'static str, BorrowedFd<'_>) {
        (self.name, self.descriptor.as_fd())
    }
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Opens a pinned map and checks that it has the sizes of this build.
    pub(crate) fn open(pins: &Pins, name: &'static str) -> Result<Self, Error> {
        let path = pins.path(name);
        let map =
            aya::maps::MapData::from_pin(&path).and_then(|map| Ok((map.info()?, map))).map_err(|source| {
                Error::Pin { operation: "open map", path: path.clone(), source: io::Error::other(source) }
            });
        let (info, _) = map?;
        let expected = (size_of::<K>(), size_of::<V>());
        let found = (info.key_size() as usize, info.value_size() as usize);
        if found != expected {
            let text = |(key, value)| format!("keys of {key} and values of {value} bytes");
            return Err(Error::Layout { map: name, found: text(found), expected: text(expected) });
        }
        let descriptor =
            bpf::open_pin(&path).map_err(|source| Error::Pin { operation: "open map", path, source })?;
        Ok(Self { name, descriptor, types: PhantomData })
    }

    fn error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        let map = self.name;
        move |source| Error::Map { operation, map, source }
    }

    /// An entry's value.
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        bpf::lookup(&self.descriptor, key).map_err(self.error("read from"))
    }

    /// Writes an entry.
    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), Error> {
        bpf::update(&self.descriptor, key, value, Update::Any).map_err(self.error("write to"))
    }

    /// Replaces an entry, and returns whether there was one.
    pub(crate) fn replace(&self, key: &K, value: &V) -> Result<bool, Error> {
        match bpf::update(&self.descriptor, key, value, Update::Present) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.error("write to")(error)),
        }
    }

    /// Writes an entry unless there is one.
    pub(crate) fn put_new(&self, key: &K, value: &V) -> Result<(), Error> {
        match self.insert(key, value)? {
            Inserted::Full => Err(self.error("write to")(io::Error::from_raw_os_error(libc::E2BIG))),
            Inserted::New | Inserted::Exists => Ok(()),
        }
    }

    /// Writes an entry unless there is one, and returns what happened.
    pub(crate) fn insert(&self, key: &K, value: &V) -> Result<Inserted, Error> {
        match bpf::update(&self.descriptor, key, value, Update::Absent) {
            Ok(()) => Ok(Inserted::New),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Inserted::Exists),
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(Inserted::Full),
            Err(error) => Err(self.error("write to")(error)),
        }
    }

    /// Its name and number of entries.
    pub(crate) fn occupancy(&self) -> Result<(&'static str, usize), Error> {
        Ok((self.name, self.entries()?.len()))
    }

    /// Removes an entry, if there is one.
    pub(crate) fn remove(&self, key: &K) -> Result<(), Error> {
        self.take(key).map(drop)
    }

    /// Removes an entry, and returns whether there was one.
    pub(crate) fn take(&self, key: &K) -> Result<bool, Error> {
        bpf::delete(&self.descriptor, key).map_err(self.error("remove from"))
    }

    /// Some entries, and where the next ones begin.
    pub(crate) fn batch(&self, from: Position) -> Result<(Entries<K, V>, Option<Position>), Error> {
        bpf::batch(&self.descriptor, from).map_err(self.error("list"))
    }

    /// All entries. One that is inserted or removed meanwhile may be missing.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        bpf::entries(&self.descriptor).map_err(self.error("list"))
    }

    /// All keys. One that is inserted or removed meanwhile may be missing.
    pub(crate) fn keys(&self) -> Result<BTreeSet<K>, Error>
    where
        K: Ord,
    {
        let mut keys = BTreeSet::new();
        let mut last = None;
        while let Some(key) = bpf::next_key(&self.descriptor, last.as_ref()).map_err(self.error("list"))? {
            keys.insert(key);
            last = Some(key);
        }
        Ok(keys)
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

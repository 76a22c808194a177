//! The reader of a ring buffer of records. Its position is in a page shared with the kernel and is read
//! afresh each time, so that the next daemon continues where the last one stopped.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ambit_abi::RecordEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

use crate::pins::Pins;
use crate::{Error, bpf};

/// Flags in an entry's first word, beside its length.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Bytes of the header of each entry.
const HEADER: usize = 8;

/// The ring buffer, mapped.
#[derive(Debug)]
pub(crate) struct Ring {
    descriptor: OwnedFd,
    /// The consumer's page, which the reader writes.
    consumer: NonNull<u8>,
    /// The producer's page and the data. The kernel can map the data twice in a row, so that entries are
    /// always contiguous. But all of a mapping counts as resident memory, so it is mapped once and the reader
    /// joins an entry that wraps around.
    producer: NonNull<u8>,
    page: usize,
    /// Bytes of data.
    size: usize,
}

// SAFETY: the memory is shared with the kernel; positions are atomic, and `drain` takes `&mut`.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens the ring with this name and number of bytes.
    pub(crate) fn open(pins: &Pins, name: &'static str, size: u32) -> Result<Self, Error> {
        let path = pins.path(name);
        let descriptor =
            bpf::open_pin(&path).map_err(|source| Error::Pin { operation: "open map", path, source })?;
        Self::map(descriptor, size).map_err(|source| Error::Map { operation: "mmap", map: name, source })
    }

    fn map(descriptor: OwnedFd, size: u32) -> io::Result<Self> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let page = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let map = |length: usize, access, offset: usize| {
            let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
            let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: a new mapping, at an address that the kernel chooses.
            let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &descriptor, offset) };
            memory.map(NonNull::cast::<u8>).map_err(io::Error::from)
        };
        let consumer = map(page, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, 0)?;
        match map(page + size, ProtFlags::PROT_READ, page) {
            Ok(producer) => Ok(Self { descriptor, consumer, producer, page, size }),
            Err(error) => {
                // SAFETY: mapped above, and not used elsewhere.
                unsafe { munmap(consumer.cast(), page) }.map_err(io::Error::from).and(Err(error))
            }
        }
    }

    /// Passes every finished record to `each`, and returns how many there were.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&RecordEntry)) -> usize {
        // SAFETY: both pages begin with a position, aligned, and live as long as the mapping.
        let (consumed, produced) = unsafe {
            (self.consumer.cast::<AtomicU64>().as_ref(), self.producer.cast::<AtomicU64>().as_ref())
        };
        let mut position = consumed.load(Ordering::Acquire);
        let mut count = 0;
        while position < produced.load(Ordering::Acquire) {
            // SAFETY: positions count bytes, and entries are in the data modulo its size.
            let entry = unsafe { self.producer.add(self.page + self.offset(position)) };
            // SAFETY: an entry begins with its length, aligned to eight bytes.
            let length = unsafe { entry.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
            if length & BUSY != 0 {
                break;
            }
            let size = length & !DISCARDED;
            if length & DISCARDED == 0 && size as usize == size_of::<RecordEntry>() {
                // SAFETY: the kernel has finished the entry, whose size is a record's.
                each(&unsafe { self.record(position + HEADER as u64) });
                count += 1;
            }
            position += (u64::from(size) + HEADER as u64).next_multiple_of(8);
            // From here on the kernel may overwrite the entry.
            consumed.store(position, Ordering::Release);
        }
        count
    }

    /// The record at a position, which may wrap around the data's end.
    ///
    /// # Safety
    /// The kernel must have finished a record there.
    unsafe fn record(&self, position: u64) -> RecordEntry {
        let mut record = MaybeUninit::<RecordEntry>::uninit();
        let begin = self.offset(position);
        let first = size_of::<RecordEntry>().min(self.size - begin);
        let to = record.as_mut_ptr().cast::<u8>();
        // SAFETY: both pieces are in the data, and together they have the size of a record, which is valid
        // for all bytes.
        unsafe {
            to.copy_from_nonoverlapping(self.producer.add(self.page + begin).as_ptr(), first);
            to.add(first).copy_from_nonoverlapping(
                self.producer.add(self.page).as_ptr(),
                size_of::<RecordEntry>() - first,
            );
            record.assume_init()
        }
    }

    /// The offset of a position in the data.
    fn offset(&self, position: u64) -> usize {
        usize::try_from(position).map_or(0, |position| position % self.size)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: both were mapped with these lengths, and nothing refers to them.
        let unmapped = unsafe {
            munmap(self.consumer.cast(), self.page).and(munmap(self.producer.cast(), self.page + self.size))
        };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "failed to unmap the ring buffer");
        }
    }
}

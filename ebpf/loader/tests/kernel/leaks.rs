//! An instance's objects in the kernel, by the kernel's ids.

use std::collections::BTreeSet;
use std::path::Path;

use ambit_loader::Settings;
use aya::maps::{MapData, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{loaded_links, loaded_programs};

use crate::lab::until;

/// Ids of programs, links and maps.
#[derive(Debug, Default)]
pub(crate) struct InKernel {
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
    pub(crate) maps: BTreeSet<u32>,
}

pub(crate) fn folder(settings: &Settings) -> std::path::PathBuf {
    settings.bpffs.join(settings.instance.as_str())
}

pub(crate) fn pins(settings: &Settings) -> Vec<std::path::PathBuf> {
    let versions = std::fs::read_dir(folder(settings)).expect("the instance's directory");
    let list = |version: &Path| {
        let pins = std::fs::read_dir(version).expect("the version's directory");
        pins.map(|pin| pin.expect("a pin").path()).collect::<Vec<_>>()
    };
    versions.flat_map(|version| list(&version.expect("a version").path())).collect()
}

impl InKernel {
    /// All pinned objects of the instance, and the maps that its programs use.
    pub(crate) fn of(settings: &Settings) -> Self {
        let mut all = Self::default();
        for pin in pins(settings) {
            if pin.file_name().expect("a name").to_string_lossy().contains('-') {
                let link = FdLink::from(PinnedLink::from_pin(&pin).expect("a pinned link"))
                    .info()
                    .expect("its data");
                all.links.insert(link.id());
                all.programs.insert(link.program_id());
            } else {
                all.maps
                    .insert(MapData::from_pin(&pin).and_then(|map| map.info()).expect("a pinned map").id());
            }
        }
        for program in loaded_programs().flatten().filter(|program| all.programs.contains(&program.id())) {
            all.maps.extend(program.map_ids().expect("a program's maps").unwrap_or_default());
        }
        all
    }

    /// Waits until the kernel has freed all of them, which it does after a grace period.
    pub(crate) fn assert_gone(&self) {
        until("no program remains", || {
            !loaded_programs().flatten().any(|program| self.programs.contains(&program.id()))
        });
        until("no link remains", || !loaded_links().flatten().any(|link| self.links.contains(&link.id())));
        until("no map remains", || !loaded_maps().flatten().any(|map| self.maps.contains(&map.id())));
    }
}

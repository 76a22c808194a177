//! Links that the daemon holds open: removing a pin does not detach a program then, and what was detached is
//! attached again.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::bpf;
use crate::difference::Difference;
use crate::{Error, pins};

/// A pinned link and the program that it should run.
#[derive(Debug)]
pub(crate) struct Held {
    link: OwnedFd,
    program: u32,
    path: PathBuf,
}

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The link is attached to nothing.
    Detached,
    /// It runs another program.
    Replaced,
    /// It has no pin any more.
    Unpinned,
    /// A program of others runs before it.
    Displaced,
}

impl Fault {
    fn found(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced => "another program",
            Self::Unpinned => "no pin",
            Self::Displaced => "another program before it",
        }
    }
}

/// What is wrong with a link, of `is` and whether it has its pin and its place. The gravest comes first.
pub(crate) fn fault(should: u32, is: bpf::LinkState, pinned: bool, first: bool) -> Option<Fault> {
    if !is.attached {
        Some(Fault::Detached)
    } else if is.program != should {
        Some(Fault::Replaced)
    } else if !first {
        Some(Fault::Displaced)
    } else if !pinned {
        Some(Fault::Unpinned)
    } else {
        None
    }
}

impl Held {
    /// Opens the link that was just pinned.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Pin { operation: "open link", path: path.clone(), source };
        let link = bpf::open_pin(&path).map_err(failed)?;
        let program = bpf::link_state(&link).map_err(failed)?.program;
        Ok(Self { link, program, path })
    }

    /// Puts the link right, and adds what was wrong to `found`. `first`: whether it has its place among the
    /// programs of its hook; `attach` attaches its program.
    pub(crate) fn put_right(
        &mut self,
        first: bool,
        attach: impl FnOnce(&OwnedFd) -> Result<OwnedFd, Error>,
        found: &mut Vec<Difference>,
    ) -> Result<(), Error> {
        let failed = |operation, path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Pin { operation, path, source }
        };
        let state = bpf::link_state(&self.link).map_err(failed("inspect link", &self.path))?;
        let Some(fault) = fault(self.program, state, self.path.exists(), first) else { return Ok(()) };
        match fault {
            Fault::Unpinned => {
                bpf::pin(&self.link, &self.path).map_err(failed("pin link", &self.path))?;
            }
            Fault::Replaced => {
                let program = bpf::program_by_number(self.program)
                    .map_err(failed("open the program of link", &self.path))?;
                bpf::replace_program(&self.link, &program)
                    .map_err(failed("replace the program of link", &self.path))?;
            }
            Fault::Detached | Fault::Displaced => {
                let program = bpf::program_by_number(self.program)
                    .map_err(failed("open the program of link", &self.path))?;
                // Attached twice for a moment, never not at all: the connections of that moment are refused.
                let link = attach(&program)?;
                // The BPF file system takes no dots in names.
                let mut draft = self.path.clone().into_os_string();
                draft.push("-new");
                let draft = PathBuf::from(draft);
                pins::Link { path: draft.clone() }.unpin()?;
                bpf::pin(&link, &draft).map_err(failed("pin link", &draft))?;
                fs::rename(&draft, &self.path).map_err(failed("rename pin", &draft))?;
                let old = std::mem::replace(&mut self.link, link);
                if fault == Fault::Displaced {
                    bpf::detach_link(&old).map_err(failed("detach link", &self.path))?;
                }
            }
        }
        let name = self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        found.push(Difference::new("link", name, fault.found()));
        Ok(())
    }

    /// Whether the link should run this program.
    pub(crate) fn runs(&self, program: u32) -> bool {
        self.program == program
    }

    /// Whether this is the first program of Ambit's on a hook, with none of others before it.
    pub(crate) fn is_first(&self, programs: &[u32], is_ours: impl Fn(u32) -> bool) -> bool {
        programs.iter().take_while(|program| **program != self.program).all(|program| is_ours(*program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::LinkState;

    #[test]
    fn gravest_fault_of_link_is_found() {
        let state = |program, attached| LinkState { program, attached };
        let rows = [
            ("as it should be", state(7, true), true, true, None),
            ("detached", state(7, false), true, true, Some(Fault::Detached)),
            ("detached and unpinned", state(7, false), false, false, Some(Fault::Detached)),
            ("another program", state(8, true), true, true, Some(Fault::Replaced)),
            ("displaced", state(7, true), true, false, Some(Fault::Displaced)),
            ("displaced and unpinned", state(7, true), false, false, Some(Fault::Displaced)),
            ("unpinned", state(7, true), false, true, Some(Fault::Unpinned)),
        ];
        for (name, is, pinned, first, expected) in rows {
            assert_eq!(fault(7, is, pinned, first), expected, "{name}");
        }
    }
}

//! A short word of a head: [`Word`].

/// Longer than any word that matters.
const LONGEST: usize = 18;

/// A name or value, of which a longer one is only known to be that.
#[derive(Debug, Default)]
pub(super) struct Word {
    bytes: [u8; LONGEST],
    length: usize,
    /// A space has followed it.
    ended: bool,
}

impl Word {
    pub(super) fn clear(&mut self) {
        self.length = 0;
        self.ended = false;
    }

    pub(super) fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    /// The same where spaces may stand ahead of the word and behind it; none if they stand within.
    pub(super) fn push_spaced(&mut self, byte: u8) -> Option<()> {
        match byte {
            b' ' | b'\t' => self.ended = self.length > 0,
            _ if self.ended => return None,
            _ => self.push(byte),
        }
        Some(())
    }

    /// None if it is too long to matter.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }

    pub(super) fn is(&self, expected: &[u8]) -> bool {
        self.bytes().is_some_and(|bytes| bytes.eq_ignore_ascii_case(expected))
    }
}

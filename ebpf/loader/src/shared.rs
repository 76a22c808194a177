//! How many entries of a map that all pods share each of them has, and its share: as many as are free
//! ([`Shared`]).

use std::collections::HashMap;
use std::hash::Hash;

/// The counts of one map. Another daemon of the instance may write as well: they are counted anew from time
/// to time.
#[derive(Debug)]
pub(crate) struct Shared<K> {
    most: usize,
    all: usize,
    of: HashMap<K, usize>,
}

impl<K: Copy + Eq + Hash> Shared<K> {
    /// Of a map with room for `most` entries, which has these.
    pub(crate) fn count(most: u32, holders: impl IntoIterator<Item = K>) -> Self {
        let mut shared =
            Self { most: usize::try_from(most).unwrap_or(usize::MAX), all: 0, of: HashMap::new() };
        holders.into_iter().for_each(|holder| shared.add(holder));
        shared
    }

    /// Whether the holder may have one more.
    pub(crate) fn has_room_for(&self, holder: K) -> bool {
        self.held_by(holder) < self.most.saturating_sub(self.all)
    }

    /// How many it has.
    pub(crate) fn held_by(&self, holder: K) -> usize {
        self.of.get(&holder).copied().unwrap_or(0)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all
    }

    /// An entry was added.
    pub(crate) fn add(&mut self, holder: K) {
        self.all += 1;
        *self.of.entry(holder).or_default() += 1;
    }

    /// An entry was removed.
    pub(crate) fn remove(&mut self, holder: K) {
        let Some(own) = self.of.get_mut(&holder) else { return };
        *own -= 1;
        self.all -= 1;
        if *own == 0 {
            self.of.remove(&holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shared;

    #[test]
    fn one_holder_gets_half_and_the_next_half_of_the_rest() {
        let mut shared = Shared::count(12, []);
        let mut fill = |holder| {
            let mut count = 0;
            while shared.has_room_for(holder) {
                shared.add(holder);
                count += 1;
            }
            count
        };
        assert_eq!([fill("first"), fill("second"), fill("third"), fill("first")], [6, 3, 2, 0]);
        assert_eq!(shared.len(), 11, "there is room for the next");
        for _ in 0..6 {
            shared.remove("first");
        }
        shared.remove("first");
        assert_eq!(
            (shared.len(), shared.held_by("first")),
            (5, 0),
            "what it does not have is not given back"
        );
        assert!(shared.has_room_for("second"));
    }
}

//! Received data that waits for its reader: [`Backlog`].

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces below this are put together: each would cost more than it holds, for it is a part of the memory
/// that many frames were read into.
const SMALL: usize = 16 << 10;
/// How much is put together.
const TOGETHER: usize = 32 << 10;

#[derive(Default)]
pub(super) struct Backlog {
    whole: VecDeque<Bytes>,
    /// After all the others.
    together: BytesMut,
    /// In all of them.
    len: usize,
}

impl Backlog {
    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() >= SMALL || self.together.len() + bytes.len() > TOGETHER {
            self.finish();
        }
        if bytes.len() >= SMALL {
            self.whole.push_back(bytes);
        } else {
            self.together.extend_from_slice(&bytes);
        }
    }

    /// Never an empty piece.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.finish();
        }
        let bytes = self.whole.pop_front()?;
        self.len -= bytes.len();
        Some(bytes)
    }

    fn finish(&mut self) {
        if !self.together.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.together).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backlog_preserves_order(sizes in vec(1..3 * SMALL, 0..40), pops in vec(any::<bool>(), 40)) {
            let (mut backlog, mut expected, mut got) = (Backlog::default(), Vec::new(), Vec::new());
            for (index, (size, pop)) in sizes.into_iter().zip(pops).enumerate() {
                let bytes = vec![u8::try_from(index).expect("at most 40"); size];
                expected.extend_from_slice(&bytes);
                backlog.push(bytes.into());
                if pop {
                    got.extend_from_slice(&backlog.pop().expect("one was pushed"));
                }
            }
            while let Some(bytes) = backlog.pop() {
                prop_assert!(!bytes.is_empty());
                got.extend_from_slice(&bytes);
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn small_pieces_are_merged() {
        let mut backlog = Backlog::default();
        for _ in 0..100_000 {
            backlog.push(Bytes::from_static(b"x"));
        }
        assert!(backlog.whole.len() <= 100_000 / TOGETHER);
    }
}

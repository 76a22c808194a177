//! Whatever comes and goes, the largest group makes room.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MOST: usize = 8;

type Held<'a> = (u8, Place<'a, u8>, oneshot::Receiver<()>);

fn size(held: &[Held<'_>], of: u8) -> usize {
    held.iter().filter(|it| it.0 == of).count()
}

proptest! {
    /// Never more than allowed, the newest always gets in, and none is cut off while another group is larger
    /// than its own.
    #[test]
    fn largest_group_is_cut_first(
        steps in vec((0..4_u8, any::<bool>(), any::<prop::sample::Index>()), 0..200),
    ) {
        let handshakes = Handshakes::new(MOST);
        let mut held: Vec<Held<'_>> = Vec::new();
        for (group, leaves, which) in steps {
            if leaves && !held.is_empty() {
                held.swap_remove(which.index(held.len()));
            }
            let sizes: Vec<usize> = (0..4).map(|of| size(&held, of)).collect();
            let (place, cut) = handshakes.enter(group);
            held.push((group, place, cut));
            let cut: Vec<usize> = (0..held.len())
                .filter(|index| held[*index].2.try_recv() == Err(oneshot::error::TryRecvError::Closed))
                .collect();
            prop_assert_eq!(cut.len(), usize::from(sizes.iter().sum::<usize>() == MOST));
            for index in cut.into_iter().rev() {
                let (of, ..) = held.remove(index);
                prop_assert_eq!(Some(&sizes[usize::from(of)]), sizes.iter().max());
            }
            prop_assert!(held.len() <= MOST);
            prop_assert_eq!(handshakes.running.lock().count, held.len());
        }
        held.clear();
        prop_assert!(handshakes.running.lock().groups.is_empty());
    }
}

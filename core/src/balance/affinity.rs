//! Session affinity by weighted rendezvous hashing: [`score`].
//!
//! Every endpoint has a score, drawn from the client's name and its own; the lowest one wins. No state is
//! kept, so all who know the mesh give the same answer. When an endpoint leaves, only its clients move. When
//! one joins, it takes its share from all others alike, because their scores do not change.

use crate::model::{Workload, WorkloadUid};

/// An exponentially distributed number whose rate is the endpoint's capacity: of several such, each is the
/// least with a probability in proportion to its rate.
pub(super) fn score(client: &WorkloadUid, endpoint: &Workload) -> f64 {
    -uniform(hash(&client.0, &endpoint.uid.0)).ln() / f64::from(endpoint.capacity)
}

/// Uniformly distributed between 0 (exclusive) and 1.
fn uniform(hash: u64) -> f64 {
    let half = |bits: u64| f64::from(u32::try_from(bits).expect("32 bits"));
    (half(hash >> 32) + (half(hash & u64::from(u32::MAX)) + 0.5) / TWO_TO_32) / TWO_TO_32
}

const TWO_TO_32: f64 = 4_294_967_296.0;

/// FNV-1a over both names, then the finalizer of MurmurHash3. Not to be changed: daemons of two versions must
/// agree.
fn hash(client: &str, endpoint: &str) -> u64 {
    // A byte that no UTF-8 text has keeps the names apart.
    let bytes = client.bytes().chain([0xff]).chain(endpoint.bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_equals_other_versions() {
        let rows = [
            ("", "", 0x1bbd_5c81_3c69_a8d7),
            ("web", "cart-1", 0x2e74_9dec_f1e4_cb29),
            ("cart-1", "web", 0x0aae_bd93_2b8d_04dc),
        ];
        for (client, endpoint, expected) in rows {
            assert_eq!(
                hash(client, endpoint),
                expected,
                "{client:?} {endpoint:?}: {:#x}",
                hash(client, endpoint)
            );
        }
    }

    #[test]
    fn uniform_numbers_are_positive() {
        for hash in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            let uniform = uniform(hash);
            assert!(uniform > 0.0 && uniform <= 1.0, "{hash}: {uniform}");
        }
    }
}

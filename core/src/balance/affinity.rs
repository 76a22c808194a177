//! Session affinity: [`sticky`] gives a client always the same endpoint, by weighted rendezvous hashing.
//!
//! Every endpoint draws a lot from the client's name and its own; the least lot wins. Nothing is remembered,
//! so whoever knows the mesh gives the same answer. When an endpoint leaves only its clients move, and when
//! one joins it takes its share from all alike, because nobody else's lots change.

use std::net::SocketAddr;

use super::{Avoid, Choice, Endpoint};
use crate::health::Ejected;
use crate::mesh::Mesh;
use crate::model::{Service, Workload, WorkloadUid};

/// The endpoint that a client of a service with affinity has, if any may serve.
pub fn sticky(
    mesh: &Mesh,
    client: &Workload,
    service: &Service,
    asked: SocketAddr,
    ejected: &Ejected,
) -> Option<SocketAddr> {
    let choice = Choice { mesh, client, service, asked, avoid: Avoid { ejected, tried: &[] } };
    choice.sticky().map(|endpoint| endpoint.address)
}

impl<'a> Choice<'a> {
    /// The client's own among those that may serve; endpoints have clients in proportion to their capacities.
    pub fn sticky(&self) -> Option<Endpoint<'a>> {
        let lots = self.endpoints().map(|endpoint| (lot(&self.client.uid, endpoint), endpoint));
        // Equal lots fall to the first by uid.
        let (_, least) = lots.reduce(|best, next| if next.0 < best.0 { next } else { best })?;
        self.endpoint(least)
    }
}

/// An exponentially distributed number whose rate is the endpoint's capacity: of several such, each is the
/// least with a probability in proportion to its rate.
fn lot(client: &WorkloadUid, endpoint: &Workload) -> f64 {
    -uniform(hash(&client.0, &endpoint.uid.0)).ln() / f64::from(endpoint.capacity)
}

/// Evenly between 0 (never) and 1.
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
    fn the_hash_is_the_one_that_other_versions_have() {
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
    fn lots_are_positive_numbers() {
        for hash in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            let uniform = uniform(hash);
            assert!(uniform > 0.0 && uniform <= 1.0, "{hash}: {uniform}");
        }
    }
}

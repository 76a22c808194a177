//! Which endpoint of a service serves a connection: [`pick`].

use std::sync::Arc;

use crate::model::{Health, LoadBalancing, LoadBalancingMode, LocalityScope, Workload};

/// Picks one of the candidates in proportion to their capacities, among those that the rule prefers for the client.
/// `dice` is a uniformly random number: the same number, the same answer. Allocates nothing.
///
/// `candidates` is asked for them several times and must give the same ones each time.
pub fn pick<'a, I>(
    candidates: impl Fn() -> I,
    client: &Workload,
    rule: &LoadBalancing,
    dice: u64,
) -> Option<&'a Arc<Workload>>
where
    I: Iterator<Item = &'a Arc<Workload>>,
{
    let usable = || {
        candidates().filter(|endpoint| {
            endpoint.capacity > 0 && (rule.allow_unhealthy || endpoint.health == Health::Healthy)
        })
    };
    let wanted = match rule.mode {
        LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => 0,
        LoadBalancingMode::Strict => rule.routing_preference.len(),
        LoadBalancingMode::Failover => usable().map(|endpoint| rank(rule, client, endpoint)).max()?,
    };
    let preferred = || {
        usable().filter(|endpoint| match rule.mode {
            LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => true,
            LoadBalancingMode::Strict | LoadBalancingMode::Failover => rank(rule, client, endpoint) == wanted,
        })
    };
    let total: u64 = preferred().map(|endpoint| u64::from(endpoint.capacity)).sum();
    // Scaling by multiplication keeps every share exact to 2⁻⁶⁴, where a remainder would favour the first ones.
    let mut left =
        u64::try_from((u128::from(dice) * u128::from(total)) >> 64).expect("smaller than a u64 total");
    for endpoint in preferred() {
        let capacity = u64::from(endpoint.capacity);
        if left < capacity {
            return Some(endpoint);
        }
        left -= capacity;
    }
    None
}

/// How many of the scopes, from the most significant on, the endpoint shares with the client.
fn rank(rule: &LoadBalancing, client: &Workload, endpoint: &Workload) -> usize {
    rule.routing_preference.iter().take_while(|scope| shares(**scope, client, endpoint)).count()
}

fn shares(scope: LocalityScope, a: &Workload, b: &Workload) -> bool {
    match scope {
        LocalityScope::Region => a.locality.region == b.locality.region,
        LocalityScope::Zone => a.locality.zone == b.locality.zone,
        LocalityScope::Subzone => a.locality.subzone == b.locality.subzone,
        LocalityScope::Node => a.node == b.node,
        LocalityScope::Cluster => a.cluster == b.cluster,
        LocalityScope::Network => a.network == b.network,
    }
}

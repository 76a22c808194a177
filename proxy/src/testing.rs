//! A small mesh for tests.

use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    Action, Authorization, Clause, Match, PolicyKey, Rule, Scope, Service, StringMatch, Workload, WorkloadUid,
};
use ambit_core::testing;

/// The workload `shop/<name>`.
pub fn uid(name: &str) -> WorkloadUid {
    testing::uid(&format!("shop/{name}"))
}

/// An enrolled workload of namespace `shop`, whose service account has its name.
pub fn workload(name: &str, addresses: &[&str]) -> Workload {
    let mut workload = testing::pod(&format!("shop/{name}"), addresses);
    workload.service_account = name.into();
    workload.node = "node0".into();
    workload
}

/// A service with port 80; endpoints listen on 8080.
pub fn service(name: &str, address: &str) -> Service {
    testing::service(&format!("shop/{name}"), &[address], &[(80, 8080)])
}

/// The workload as an endpoint of the service.
pub fn endpoint_of(workload: Workload, name: &str) -> Workload {
    testing::behind(workload, &service(name, "10.96.0.1"))
}

/// A policy of the namespace: `action` for the principals of these service accounts.
pub fn policy(name: &str, action: Action, accounts: &[&str]) -> Authorization {
    let principal = |account: &&str| StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let matches = vec![Match { principals: accounts.iter().map(principal).collect(), ..Match::default() }];
    Authorization {
        key: PolicyKey { namespace: "shop".into(), name: name.into() },
        scope: Scope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
    }
}

/// A mesh of these.
pub fn mesh(changes: impl IntoIterator<Item = Change>) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.apply(changes);
    mesh
}

/// The change that adds a workload.
pub fn put(workload: Workload) -> Change {
    Change::PutWorkload(Arc::new(workload))
}

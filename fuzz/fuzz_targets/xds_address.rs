//! Any `istio.workload.Address`: a value or an error. A value reads the same after it is encoded, and a mesh
//! adds and removes it completely.
#![no_main]

use std::sync::Arc;

use ambit_core::mesh::{Change, Mesh};
use ambit_xds::convert::{decode_service, decode_workload, encode_service, encode_workload};
use ambit_xds::proto::istio::workload::{Address, address};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Ok(address) = Address::decode(data) else { return };
    let mut mesh = Mesh::new();
    match address.r#type {
        Some(address::Type::Workload(message)) => {
            let Ok(workload) = decode_workload(&message) else { return };
            assert_eq!(decode_workload(&encode_workload(&workload)).as_ref(), Ok(&workload));
            let uid = workload.uid.clone();
            mesh.apply([Change::PutWorkload(Arc::new(workload))]);
            assert!(mesh.workload(&uid).is_some());
            mesh.apply([Change::RemoveWorkload(uid)]);
        }
        Some(address::Type::Service(message)) => {
            let Ok(service) = decode_service(&message) else { return };
            assert_eq!(decode_service(&encode_service(&service)).as_ref(), Ok(&service));
            let key = service.key.clone();
            mesh.apply([Change::PutService(Arc::new(service))]);
            assert!(mesh.service(&key).is_some());
            mesh.apply([Change::RemoveService(key)]);
        }
        None => {}
    }
    assert!(mesh == Mesh::new(), "nothing remains");
});

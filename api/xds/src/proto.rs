//! The messages and services generated from `proto/`, one module per protobuf package.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]

/// `istio.workload` and `istio.security`, `istio.v1.auth`.
pub mod istio {
    /// Workloads and services.
    pub mod workload {
        tonic::include_proto!("istio.workload");
    }
    /// Authorization policies.
    pub mod security {
        tonic::include_proto!("istio.security");
    }
    /// Certificates.
    pub mod v1 {
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

/// `envoy.service.discovery.v3`.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `ambit.v1`.
pub mod ambit {
    pub mod v1 {
        tonic::include_proto!("ambit.v1");
    }
}

//! Counts a request that has ended in Istio's metrics.
//!
//! Entry point: [`count`].

use ambit_core::model::Identity;

use super::record::Record;
use super::series::{Answer, Asked, Labels, Names, ServiceNames};

/// Counts a request that has ended.
pub(super) fn count(request: &Record) {
    let answer = Answer {
        code: request.status.map_or(0, |status| status.as_u16()),
        flag: request.flag,
        is_grpc: request.is_grpc,
        grpc_status: request.grpc_status,
    };
    let asked = Asked { workload: request.workload.as_ref(), service: request.service.as_ref(), answer };
    let series = request.downstream.series.series(&asked, || labels(request, answer));
    series.count(request.took(), request.request.bytes(), request.response_bytes);
}

fn labels(request: &Record, answer: Answer) -> Labels {
    let downstream = &request.downstream;
    let mutual = request.workload.as_ref().filter(|workload| workload.in_mesh());
    Labels {
        source: downstream.source.as_deref().map(Names::new),
        principal: Some(Identity::clone(&downstream.identity)),
        destination: request.workload.as_deref().map(Names::new),
        destination_principal: mutual.map(|workload| workload.identity()),
        service: request.service.as_deref().map(ServiceNames::new),
        answer,
    }
}

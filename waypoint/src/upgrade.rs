//! Requests that turn their connection into another protocol's (WebSocket): [`wanted`], then [`switch`].

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};

use crate::body::ResponseBody;
use crate::failure::Failure;
use crate::headers::tokens;
use crate::report::Exchange;
use crate::upstream::Lease;

/// A wish to go on in another protocol.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) protocol: HeaderValue,
    client: OnUpgrade,
}

/// Whether a request asks for another protocol. `h2c` is not passed on: behind it requests would be hidden
/// from the rules.
pub(crate) fn wanted(parts: &mut Parts) -> Option<Upgrade> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let mut connection = parts.headers.get_all(CONNECTION).iter().flat_map(tokens);
    connection.find(|token| token.eq_ignore_ascii_case("upgrade"))?;
    let protocol = parts.headers.get(UPGRADE)?.clone();
    if tokens(&protocol).any(|token| token.eq_ignore_ascii_case("h2c")) {
        return None;
    }
    let client = parts.extensions.remove::<OnUpgrade>()?;
    Some(Upgrade { protocol, client })
}

/// Ends a connection in order whose wish is not granted: where hyper would close it, it hands it over all the
/// same, and dropped it would be reset together with the answer.
pub(crate) fn decline(client: OnUpgrade) {
    tokio::spawn(async move {
        if let Ok(client) = client.await {
            let _ended = TokioIo::new(client).shutdown().await;
        }
    });
}

/// Answers 101, and carries bytes both ways from then on.
pub(crate) fn switch(
    mut exchange: Box<Exchange>,
    mut response: Response<Incoming>,
    lease: Lease,
    upgrade: Upgrade,
) -> Response<ResponseBody> {
    exchange.downstream.switch();
    let endpoint = hyper::upgrade::on(&mut response);
    let mut answer = Response::new(ResponseBody::none());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    let drain = exchange.downstream.worker.waypoint.proxy.drain.clone();
    let hold = drain.hold();
    tokio::spawn(async move {
        let (_hold, _lease) = (hold, lease);
        let carried = async {
            let (client, endpoint) = (upgrade.client.await?, endpoint.await?);
            Ok::<_, hyper::Error>((TokioIo::new(client), TokioIo::new(endpoint)))
        };
        let (mut client, mut endpoint) = match carried.await {
            Ok(both) => both,
            Err(error) => return exchange.broke(&Failure::Reset(ambit_core::chain(&error))),
        };
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut endpoint) => match copied {
                Ok((_, received)) => {
                    exchange.response_bytes = received;
                    exchange.delivered();
                }
                Err(error) => exchange.broke(&Failure::Reset(error.to_string())),
            },
            () = drain.cut() => exchange.broke(&Failure::Reset("the drain's deadline has passed".to_owned())),
        }
    });
    answer
}

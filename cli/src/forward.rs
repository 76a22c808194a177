//! Queries of a daemon's admin interface: through the API server, as `kubectl port-forward` does, or at an
//! address.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::error::{Error, api};

/// Where ztunnel's admin interface listens, on its pod's loopback.
const ADMIN: u16 = 15000;
/// The deadline of a query, including the connection.
const DEADLINE: Duration = Duration::from_secs(30);

/// Queries the daemon in a pod.
pub(crate) async fn query_pod(client: &Client, pod: &Pod, path: &str) -> Result<Value, Error> {
    let daemon = format!("pod {}", pod.name_any());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let forwarded = pods.portforward(&pod.name_any(), &[ADMIN]).await;
    let mut forwarder = forwarded.map_err(api(format!("forward a port of {daemon}")))?;
    let failed = |reason: &str| Error::Admin { daemon: daemon.clone(), reason: reason.to_owned() };
    let stream = forwarder.take_stream(ADMIN).ok_or_else(|| failed("the API server opened no stream"))?;
    let refused =
        forwarder.take_error(ADMIN).ok_or_else(|| failed("the API server opened no error stream"))?;
    let answer = query(stream, &daemon, path);
    tokio::select! {
        // An answer wins over the error that may come with the end of the stream.
        biased;
        answer = answer => answer,
        Some(error) = refused => Err(failed(error.trim())),
    }
}

/// Queries the daemon at an address.
pub(crate) async fn query_address(address: SocketAddr, path: &str) -> Result<Value, Error> {
    let daemon = address.to_string();
    let stream = TcpStream::connect(address).await;
    let stream =
        stream.map_err(|error| Error::Admin { daemon: daemon.clone(), reason: error.to_string() })?;
    query(stream, &daemon, path).await
}

/// One query over a stream.
async fn query<S>(stream: S, daemon: &str, path: &str) -> Result<Value, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |reason: String| Error::Admin { daemon: daemon.to_owned(), reason };
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are also those of the request.
        let driven = tokio::spawn(connection);
        let request = hyper::Request::get(path).header(http::header::HOST, "localhost");
        let request = request.body(Empty::<Bytes>::new()).expect("the parts of the request are constant");
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driven.abort();
        Ok::<_, hyper::Error>((status, body))
    };
    let (status, body) = tokio::time::timeout(DEADLINE, exchange)
        .await
        .map_err(|_| failed(format!("no answer within {} s", DEADLINE.as_secs())))?
        .map_err(|error| failed(ambit_kube::error::chain(&error)))?;
    if !status.is_success() {
        return Err(failed(format!("{path}: {status}")));
    }
    serde_json::from_slice(&body).map_err(|error| failed(format!("{path}: not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The result for an answer of the daemon.
    async fn result_of(answer: &'static str) -> Result<Value, String> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut request = vec![0; 1024];
            let count = theirs.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /connections HTTP/1.1\r\nhost: localhost"));
            theirs.write_all(answer.as_bytes()).await.unwrap();
        });
        query(ours, "pod z", "/connections").await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_json_with_a_success_status_is_an_answer() {
        let rows: [(&str, &str, Result<Value, &str>); 3] = [
            ("JSON", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", Ok(serde_json::json!([]))),
            (
                "an older daemon",
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                Err("failed to query pod z: /connections: 404 Not Found"),
            ),
            (
                "something else",
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n<",
                Err("failed to query pod z: /connections: not JSON: expected value at line 1 column 1"),
            ),
        ];
        for (name, answer, expected) in rows {
            assert_eq!(result_of(answer).await, expected.map_err(str::to_owned), "{name}");
        }
    }
}

//! The agent's side of the plugin's requests ([`crate::request`]): a socket that only root may open.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_kube::error::chain;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use super::cluster::Cluster;
use super::pod::PodKey;
use super::{files, telemetry};
use crate::request::{Answer, MAX_LINE, Request, SOCKET};

/// Requests that are served at once; more wait for their turn.
const CONCURRENCY: usize = 16;
/// A client that says nothing is dropped.
const SILENCE: Duration = Duration::from_secs(5);
/// After an `accept` that failed: it may be for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the plugin's requests.
pub(crate) struct Requests {
    listener: UnixListener,
    cluster: Cluster,
    /// Told when the plugin's credential is refused.
    refused: Arc<Notify>,
}

impl Requests {
    /// Opens the socket in the run folder, in the place of a former agent's.
    pub(crate) fn open(run_dir: &Path, cluster: Cluster, refused: Arc<Notify>) -> io::Result<Self> {
        let path = run_dir.join(SOCKET);
        files::remove(&path)?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, cluster, refused })
    }

    /// Serves for as long as it is polled.
    pub(crate) async fn serve(self) {
        let slots = Arc::new(Semaphore::new(CONCURRENCY));
        loop {
            let slot = slots.clone().acquire_owned().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (cluster, refused) = (self.cluster.clone(), self.refused.clone());
                    tokio::spawn(async move {
                        // A plugin that has given up reads no answer.
                        _ = serve(stream, &cluster, &refused).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "request of the plugin not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn serve(mut stream: UnixStream, cluster: &Cluster, refused: &Notify) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut lines = BufReader::new(read.take(MAX_LINE));
    tokio::time::timeout(SILENCE, lines.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => Answer { error: execute(request, cluster, refused).await.err() },
        Err(error) => Answer { error: Some(format!("not a request: {error}")) },
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

async fn execute(request: Request, cluster: &Cluster, refused: &Notify) -> Result<(), String> {
    match request {
        Request::Enrolled { namespace, name, uid } => {
            let key = PodKey { namespace, name };
            let annotated = cluster.annotate_captured(&key, &uid, true).await;
            annotated.inspect(|()| tracing::info!(pod = %key, "pod annotated for the plugin")).map_err(
                |error| {
                    telemetry::API_ERRORS.count();
                    let error = chain(&error);
                    tracing::warn!(pod = %key, error, "pod not annotated for the plugin");
                    error
                },
            )
        }
        Request::CredentialRefused => {
            refused.notify_one();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;

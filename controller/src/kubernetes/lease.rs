//! Leader election: the leader holds a Lease, which it renews every few seconds and releases at the end;
//! another replica takes it when the holder has not renewed it for its duration. Each replica measures that
//! by its own clock, from when it saw the holder's last renewal, so clocks need not agree.
//!
//! Every replica asks for the lease, so this is also how it notices that it is cut off from the API server
//! ([`Contact`]): it is not ready then, and daemons that connect find another replica.
//!
//! [`Candidate`] decides (pure); [`hold`] reads and writes.

use std::time::{Duration, Instant};

use ambit_daemon_kit::admin;
use ambit_kube::error::{chain, is_conflict};
use ambit_kube::object;
use ambit_kube::retry::{RequestError, within};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::config::kubernetes::Settings;

/// How long a holder that does not renew keeps the lease.
const DURATION: Duration = Duration::from_secs(15);
/// Between renewals, and between reads of the other replicas.
const RENEWAL: Duration = Duration::from_secs(5);
/// After a failed renewal.
const RETRY: Duration = Duration::from_secs(1);
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(4);
/// A holder that could not renew for this long stops leading, before another may start.
const GIVE_UP: Duration = Duration::from_secs(11);

/// A replica without an answer for this long is cut off: as old as this may its state be while it is ready.
const CUT_OFF: Duration = Duration::from_secs(30);

/// When the API server answered last.
#[derive(Debug)]
struct Contact(Instant);

impl Contact {
    /// Takes in the result of a request, and says for how long there has been no answer if that is too long.
    /// A refusal is an answer.
    fn after(&mut self, result: &Result<(), RequestError>, now: Instant) -> Option<Duration> {
        if matches!(result, Ok(()) | Err(RequestError::Api(kube::Error::Api(_)))) {
            self.0 = now;
        }
        Some(now.duration_since(self.0)).filter(|since| *since > CUT_OFF)
    }
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// Take or renew it.
    Write,
    /// Another holds it.
    Wait,
}

/// One replica.
#[derive(Debug)]
struct Candidate {
    name: String,
    /// The last version of another holder's lease, and when it was first seen.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), seen: None, renewed: None }
    }

    /// What to do, for the lease as it is now.
    fn judge(&mut self, lease: &Lease, now: Instant) -> Decision {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.name {
            return Decision::Write;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = duration.map_or(DURATION, Duration::from_secs);
        if now.duration_since(since) > duration { Decision::Write } else { Decision::Wait }
    }

    /// How long it may lead without another renewal.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = GIVE_UP.checked_sub(now.duration_since(self.renewed?))?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// The lease with this replica as its holder.
    fn held(&self, mut lease: Lease, time: Timestamp) -> Lease {
        let old = lease.spec.take().unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(self.name.as_str());
        let transitions = old.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time } else { Some(MicroTime(time)) },
            renew_time: Some(MicroTime(time)),
            lease_transitions: Some(if ours { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        });
        lease.metadata.managed_fields = None;
        lease
    }
}

/// Runs for leader and reports in `leads` whether the lease is held, until `stop` resolves; then releases it.
/// `reachable` is met while the API server answers.
pub(crate) async fn hold(
    client: Client,
    settings: Settings,
    leads: watch::Sender<bool>,
    reachable: admin::Condition,
    stop: impl Future<Output = ()>,
) {
    let leases: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let mut candidate = Candidate::new(&settings.pod_name);
    let mut contact = Contact(Instant::now());
    reachable.met();
    let campaign = async {
        loop {
            // The leader stops in time even if a request hangs.
            let bound = |limit: Duration, left: Option<Duration>| left.map_or(limit, |left| limit.min(left));
            let deadline = bound(DEADLINE, candidate.left(Instant::now()));
            let attempted = within(deadline, attempt(&leases, &settings.lease, &mut candidate)).await;
            match (contact.after(&attempted, Instant::now()), &attempted) {
                (Some(since), Err(error)) => {
                    let error = chain(error);
                    reachable
                        .unmet(format!("no answer of the API server for {} s: {error}", since.as_secs()));
                }
                _ => reachable.met(),
            }
            let pause = match attempted {
                Ok(()) => RENEWAL,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "failed to renew the lease");
                    RETRY
                }
            };
            let left = candidate.left(Instant::now());
            let now = left.is_some();
            if leads.send_if_modified(|led| std::mem::replace(led, now) != now) {
                tracing::info!(leads = now, "leadership");
            }
            tokio::time::sleep(bound(pause, left)).await;
        }
    };
    tokio::select! {
        () = campaign => {}
        () = stop => {}
    }
    let led = leads.send_replace(false);
    if led {
        let released = tokio::time::timeout(DEADLINE, release(&leases, &settings)).await;
        tracing::info!(released = matches!(released, Ok(Ok(()))), "lease released");
    }
}

async fn attempt(leases: &Api<Lease>, name: &str, candidate: &mut Candidate) -> Result<(), kube::Error> {
    let begun = Instant::now();
    let mut lease = leases.get_opt(name).await?.unwrap_or_default();
    if candidate.judge(&lease, begun) == Decision::Wait {
        candidate.renewed = None;
        return Ok(());
    }
    lease.metadata.name = Some(name.to_owned());
    let lease = candidate.held(lease, Timestamp::now());
    match object::write(leases, &lease).await {
        Ok(_) => candidate.renewed = Some(begun),
        // Another replica was faster.
        Err(error) if is_conflict(&error) => candidate.renewed = None,
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Clears the holder, so that the next replica need not wait.
async fn release(leases: &Api<Lease>, settings: &Settings) -> Result<(), kube::Error> {
    let Some(mut lease) = leases.get_opt(&settings.lease).await? else { return Ok(()) };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(settings.pod_name.as_str()) {
        spec.holder_identity = None;
        lease.metadata.managed_fields = None;
        object::write(leases, &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

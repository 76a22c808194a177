//! Which replica leads: one that holds a Lease, renewed every few seconds, taken over when its holder has not
//! renewed it for its duration, released at the end. Times are judged by this replica's own clock from when
//! it saw the holder's last renewal, so clocks need not agree.
//!
//! [`Contest`] decides (pure); [`hold`] asks and writes.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::config::kubernetes::Settings;

/// How long a holder that does not renew keeps the lease.
const DURATION: Duration = Duration::from_secs(15);
/// Between renewals, and between looks of those who wait.
const RENEWAL: Duration = Duration::from_secs(5);
/// After a renewal that failed.
const RETRY: Duration = Duration::from_secs(1);
/// For one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(4);
/// A holder that could not renew for this long stops acting before another may begin.
const GIVE_UP: Duration = Duration::from_secs(11);

/// What a look at the lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Take it, or renew it.
    Write,
    /// Another holds it.
    Wait,
}

/// One replica's side.
#[derive(Debug)]
struct Contest {
    name: String,
    /// The last version of another's lease, and when it was first seen.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Contest {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), seen: None, renewed: None }
    }

    /// Whether to write, for the lease as it is now.
    fn judge(&mut self, lease: &Lease, now: Instant) -> Verdict {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.name {
            return Verdict::Write;
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
        if now.duration_since(since) > duration { Verdict::Write } else { Verdict::Wait }
    }

    /// How long it leads without another renewal.
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

/// Contends for the lease and says in `leads` whether it is held, until `stop` resolves; then releases it.
pub(crate) async fn hold(
    client: Client,
    settings: Settings,
    leads: watch::Sender<bool>,
    stop: impl Future<Output = ()>,
) {
    let leases: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let mut contest = Contest::new(&settings.pod_name);
    let contend = async {
        loop {
            // Whoever leads stops in time, whatever hangs.
            let bound = |limit: Duration, left: Option<Duration>| left.map_or(limit, |left| limit.min(left));
            let deadline = bound(DEADLINE, contest.left(Instant::now()));
            let attempted =
                tokio::time::timeout(deadline, attempt(&leases, &settings.lease, &mut contest)).await;
            let pause = match attempted {
                Ok(Ok(())) => RENEWAL,
                Ok(Err(error)) => {
                    tracing::warn!(error = %crate::error_chain(&error), "the lease cannot be renewed");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!("the lease cannot be renewed: no answer in time");
                    RETRY
                }
            };
            let left = contest.left(Instant::now());
            let now = left.is_some();
            if leads.send_if_modified(|led| std::mem::replace(led, now) != now) {
                tracing::info!(leads = now, "leadership");
            }
            tokio::time::sleep(bound(pause, left)).await;
        }
    };
    tokio::select! {
        () = contend => {}
        () = stop => {}
    }
    let led = leads.send_replace(false);
    if led {
        let released = tokio::time::timeout(DEADLINE, release(&leases, &settings)).await;
        tracing::info!(released = matches!(released, Ok(Ok(()))), "the lease is given back");
    }
}

async fn attempt(leases: &Api<Lease>, name: &str, contest: &mut Contest) -> Result<(), kube::Error> {
    let begun = Instant::now();
    let parameters = PostParams::default();
    let mut lease = leases.get_opt(name).await?.unwrap_or_default();
    if contest.judge(&lease, begun) == Verdict::Wait {
        contest.renewed = None;
        return Ok(());
    }
    let there = lease.metadata.resource_version.is_some();
    lease.metadata.name = Some(name.to_owned());
    let lease = contest.held(lease, Timestamp::now());
    let written = if there {
        leases.replace(name, &parameters, &lease).await
    } else {
        leases.create(&parameters, &lease).await
    };
    match written {
        Ok(_) => contest.renewed = Some(begun),
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => contest.renewed = None,
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Says that nobody holds it, so that the next need not wait.
async fn release(leases: &Api<Lease>, settings: &Settings) -> Result<(), kube::Error> {
    let Some(mut lease) = leases.get_opt(&settings.lease).await? else { return Ok(()) };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(settings.pod_name.as_str()) {
        spec.holder_identity = None;
        lease.metadata.managed_fields = None;
        leases.replace(&settings.lease, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        });
        lease
    }

    #[test]
    fn who_may_write() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str, u64)], Verdict);
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let rows: [Row<'_>; 7] = [
            ("nobody's", &[("", "1", 0)], Verdict::Write),
            ("its own", &[("me", "1", 0)], Verdict::Write),
            ("another's", &[("you", "1", 0)], Verdict::Wait),
            ("another's, not yet over", &[("you", "1", 0), ("you", "1", 15)], Verdict::Wait),
            ("another's, over", &[("you", "1", 0), ("you", "1", 16)], Verdict::Write),
            ("renewed meanwhile", &[("you", "1", 0), ("you", "2", 10), ("you", "2", 20)], Verdict::Wait),
            ("given back", &[("you", "1", 0), ("", "2", 1)], Verdict::Write),
        ];
        for (name, looks, expected) in rows {
            let mut contest = Contest::new("me");
            let verdicts: Vec<Verdict> = looks
                .iter()
                .map(|(holder, version, second)| contest.judge(&lease(holder, version), later(*second)))
                .collect();
            assert_eq!(verdicts.last(), Some(&expected), "{name}");
        }
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        let mut contest = Contest::new("me");
        let now = Instant::now();
        assert_eq!(contest.left(now), None);
        contest.renewed = Some(now);
        assert_eq!(contest.left(now + Duration::from_secs(10)), Some(Duration::from_secs(1)));
        assert_eq!(contest.left(now + GIVE_UP), None);
        assert_eq!(contest.left(now + 2 * GIVE_UP), None);
        assert!(GIVE_UP + DEADLINE <= DURATION, "what is under way then has ended, too");
    }

    #[test]
    fn what_is_written() {
        let contest = Contest::new("me");
        let time = Timestamp::UNIX_EPOCH;
        let spec = contest.held(lease("you", "1"), time).spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time.is_some()), (Some(4), true));
        let spec = contest.held(lease("me", "1"), time).spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(3), None));
        assert_eq!(spec.holder_identity.as_deref(), Some("me"));
    }
}

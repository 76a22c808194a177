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
fn the_lease_is_taken_when_free_or_expired() {
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str, u64)], Decision);
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let rows: [Row<'_>; 7] = [
        ("free", &[("", "1", 0)], Decision::Write),
        ("its own", &[("me", "1", 0)], Decision::Write),
        ("another's", &[("you", "1", 0)], Decision::Wait),
        ("another's, not yet expired", &[("you", "1", 0), ("you", "1", 15)], Decision::Wait),
        ("another's, expired", &[("you", "1", 0), ("you", "1", 16)], Decision::Write),
        ("renewed meanwhile", &[("you", "1", 0), ("you", "2", 10), ("you", "2", 20)], Decision::Wait),
        ("released", &[("you", "1", 0), ("", "2", 1)], Decision::Write),
    ];
    for (name, looks, expected) in rows {
        let mut candidate = Candidate::new("me");
        let decisions: Vec<Decision> = looks
            .iter()
            .map(|(holder, version, second)| candidate.judge(&lease(holder, version), later(*second)))
            .collect();
        assert_eq!(decisions.last(), Some(&expected), "{name}");
    }
}

#[test]
fn a_leader_stops_before_another_may_start() {
    let mut candidate = Candidate::new("me");
    let now = Instant::now();
    assert_eq!(candidate.left(now), None);
    candidate.renewed = Some(now);
    assert_eq!(candidate.left(now + Duration::from_secs(10)), Some(Duration::from_secs(1)));
    assert_eq!(candidate.left(now + GIVE_UP), None);
    assert_eq!(candidate.left(now + 2 * GIVE_UP), None);
    assert!(GIVE_UP + DEADLINE <= DURATION, "a request in flight has ended by then, too");
}

#[test]
fn fields_of_the_written_lease() {
    let candidate = Candidate::new("me");
    let time = Timestamp::UNIX_EPOCH;
    let spec = candidate.held(lease("you", "1"), time).spec.unwrap();
    assert_eq!((spec.lease_transitions, spec.acquire_time.is_some()), (Some(4), true));
    let spec = candidate.held(lease("me", "1"), time).spec.unwrap();
    assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(3), None));
    assert_eq!(spec.holder_identity.as_deref(), Some("me"));
}

/// A name, answers by second, and whether the replica is cut off at the last of them.
type Row<'a> = (&'a str, &'a [(u64, Option<bool>)], bool);

#[test]
fn a_replica_without_answers_is_cut_off() {
    let begin = Instant::now();
    let silent = || Err(RequestError::Timeout(DEADLINE));
    let refused = || Err(RequestError::Api(kube::Error::Api(kube::core::Status::default().boxed())));
    let rows: [Row<'_>; 5] = [
        ("answered", &[(0, Some(true)), (300, Some(true))], false),
        ("silent for a while", &[(0, Some(true)), (30, None)], false),
        ("silent for too long", &[(0, Some(true)), (10, None), (31, None)], true),
        ("never answered", &[(31, None)], true),
        ("refused, which is an answer", &[(31, None), (40, Some(false))], false),
    ];
    for (name, answers, expected) in rows {
        let mut contact = Contact(begin);
        let mut cut_off = None;
        for (second, answer) in answers {
            let result = match answer {
                None => silent(),
                Some(true) => Ok(()),
                Some(false) => refused(),
            };
            cut_off = contact.after(&result, begin + Duration::from_secs(*second));
        }
        assert_eq!(cut_off.is_some(), expected, "{name}");
    }
}

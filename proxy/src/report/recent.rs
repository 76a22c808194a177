//! The last connections that ended, were refused or could not be made, with the reason: [`recent`]. For an
//! operator who asks what just happened and has no log.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::connection::{Bytes, ConnectionInfo, Ending};

/// How many are kept. Each holds names that are shared with the mesh's own, and a line of text where it
/// failed.
const KEPT: usize = 1000;

/// Of the whole process, like the counters.
static RECENT: Mutex<VecDeque<Ended>> = Mutex::new(VecDeque::new());

/// A connection that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// When it ended.
    pub at: SystemTime,
    /// Who talked to whom.
    pub connection: ConnectionInfo,
    /// What it carried.
    pub bytes: Bytes,
    /// How long it was open, or was being made.
    pub duration: Duration,
    /// Why it ended.
    pub ending: Ending,
}

/// The newest first.
pub fn recent() -> Vec<Ended> {
    RECENT.lock().iter().rev().cloned().collect()
}

pub(super) fn remember(connection: &ConnectionInfo, bytes: Bytes, duration: Duration, ending: &Ending) {
    let ended = Ended {
        at: SystemTime::now(),
        connection: connection.clone(),
        bytes,
        duration,
        ending: ending.clone(),
    };
    push(&mut RECENT.lock(), ended);
}

fn push(recent: &mut VecDeque<Ended>, ended: Ended) {
    if recent.len() >= KEPT {
        recent.pop_front();
    }
    recent.push_back(ended);
}

#[cfg(test)]
mod tests {
    use ambit_core::Reason;

    use super::*;
    use crate::report::connection::Flag;
    use crate::report::observed;
    use crate::report::tests::info;

    fn ended(number: u64) -> Ended {
        Ended {
            at: SystemTime::UNIX_EPOCH,
            connection: info("recent", "cart"),
            bytes: Bytes { from_client: number, from_server: 0 },
            duration: Duration::ZERO,
            ending: Ending { reason: Reason::Closed, flag: Flag::None, error: None, policy: None },
        }
    }

    #[test]
    fn only_the_last_are_kept() {
        let mut all = VecDeque::new();
        let count = u64::try_from(KEPT).unwrap() + 10;
        (0..count).for_each(|number| push(&mut all, ended(number)));
        let kept: Vec<_> = all.iter().map(|ended| ended.bytes.from_client).collect();
        assert_eq!(kept, (10..count).collect::<Vec<_>>());
    }

    #[test]
    fn refused_connections_are_kept_too() {
        let refusal = Ending {
            reason: Reason::PlaintextRefused,
            flag: Flag::Denied,
            error: Some("no".to_owned()),
            policy: None,
        };
        observed::refused(&info("recent-refused", "cart"), &refusal);
        let name =
            |ended: &Ended| ended.connection.source.workload.as_ref().map(|w| w.workload_name.to_string());
        let found = recent().into_iter().find(|ended| name(ended).as_deref() == Some("recent-refused"));
        assert_eq!(found.expect("it is kept").ending.reason, Reason::PlaintextRefused);
    }
}

//! The body of a request between its tries: [`Payload`].

use hyper::body::Incoming;

use super::{Count, Recording, RequestBody};

/// The body of a request, as far as it is still here.
pub(crate) enum Payload {
    Empty,
    Stream(Incoming),
    /// It may be sent again.
    Recorded(Recording),
    /// It was sent, and cannot be sent again.
    Spent,
}

impl Payload {
    /// The body for one try; it counts what is read of it.
    pub(crate) fn take(&mut self, count: &Count) -> Option<RequestBody> {
        match std::mem::replace(self, Self::Spent) {
            Self::Empty => {
                *self = Self::Empty;
                Some(RequestBody::Empty)
            }
            Self::Stream(incoming) => Some(RequestBody::Stream(incoming, count.clone())),
            Self::Recorded(recording) => {
                let replay = recording.replay();
                *self = Self::Recorded(recording);
                replay.map(RequestBody::Replay)
            }
            Self::Spent => None,
        }
    }

    pub(crate) fn is_replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Recorded(recording) => !recording.is_lost(),
            Self::Stream(_) | Self::Spent => false,
        }
    }
}

//! Deadlines for one request ([`within`]) and pauses between attempts ([`Backoff`], [`until_done`]).

use std::time::Duration;

/// Why a request with a deadline failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server refused, or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// No answer came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// The answer to a request, if it comes within the deadline.
pub async fn within<T>(
    deadline: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(deadline, request).await {
        Ok(answer) => answer.map_err(RequestError::Api),
        Err(_elapsed) => Err(RequestError::Timeout(deadline)),
    }
}

/// Attempts until one succeeds. `failed` receives the error of each failed attempt and returns how long to
/// wait before the next.
pub async fn until_done<T, E>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
    mut failed: impl FnMut(E) -> Duration,
) -> T {
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => tokio::time::sleep(failed(error)).await,
        }
    }
}

/// Pauses after failures in a row: each twice as long as the one before, up to a longest.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// The next pause is `first`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to wait after a failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.longest);
        pause
    }

    /// To be called after a success: the next pause is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(3));
        assert_eq!([(); 4].map(|()| backoff.pause()), [1, 2, 3, 3].map(seconds));
        backoff.reset();
        assert_eq!(backoff.pause(), seconds(1));
    }

    #[tokio::test]
    async fn a_request_without_an_answer_ends_at_its_deadline() {
        let error = within::<()>(Duration::ZERO, std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 0 s");
        assert_eq!(within(Duration::MAX, std::future::ready(Ok(1))).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn attempts_end_with_the_first_success() {
        let mut attempts = 0;
        let mut failures = Vec::new();
        let done = until_done(
            async || {
                attempts += 1;
                if attempts < 3 { Err(attempts) } else { Ok("done") }
            },
            |error| {
                failures.push(error);
                Duration::ZERO
            },
        );
        assert_eq!(done.await, "done");
        assert_eq!(failures, [1, 2]);
    }
}

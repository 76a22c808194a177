//! Errors of the API server: [`chain`] for people, predicates for programs.

use std::error::Error;

use kube::core::Status;

use crate::retry::RequestError;

/// An error and its causes on one line. What the API server answered is given in its own words: the client's
/// error prints the whole answer.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    ambit_core::chain_as(error, |error| (message(error), cause_of(error)))
}

/// The next cause. What the API server answered has none: its source is the same answer again.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match of_client(error) {
        Some(kube::Error::Api(_)) => None,
        _ => error.source(),
    }
}

/// The client's error, also where it is that of a request with a deadline.
fn of_client<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a kube::Error> {
    match error.downcast_ref() {
        Some(RequestError::Api(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

fn message(error: &(dyn Error + 'static)) -> String {
    let status = match of_client(error) {
        Some(kube::Error::Api(status)) => Some(&**status),
        _ => error.downcast_ref::<Status>(),
    };
    match status {
        Some(status) if !status.message.is_empty() => status.message.clone(),
        _ => error.to_string(),
    }
}

/// The API server has no such object, or no such kind.
pub fn is_not_found(error: &kube::Error) -> bool {
    has_code(error, &[404])
}

/// The object has changed since it was read, or another was created under its name.
pub fn is_conflict(error: &kube::Error) -> bool {
    has_code(error, &[409])
}

/// The object that was meant is gone: nothing has its name, or another object has.
pub fn is_gone(error: &kube::Error) -> bool {
    has_code(error, &[404, 409])
}

fn has_code(error: &kube::Error, codes: &[u16]) -> bool {
    matches!(error, kube::Error::Api(status) if codes.contains(&status.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read {0}")]
    struct Read(&'static str, #[source] kube::Error);

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status { code, message: message.to_owned(), ..Status::default() }.boxed())
    }

    #[test]
    fn chain_gives_the_api_servers_message_once() {
        let error = Read("pod shop/web", api(403, "pods is forbidden"));
        assert_eq!(chain(&error), "failed to read pod shop/web: pods is forbidden");
        assert_eq!(chain(&api(404, "not found")), "not found");
        assert_eq!(chain(&RequestError::Api(api(403, "pods is forbidden"))), "pods is forbidden");
        let without_message = chain(&api(500, ""));
        assert!(!without_message.is_empty() && !without_message.ends_with(": "), "{without_message}");
    }

    #[test]
    fn status_codes_are_classified() {
        // Code, not found, conflict, gone.
        let rows = [(404, true, false, true), (409, false, true, true), (403, false, false, false)];
        for (code, not_found, conflict, gone) in rows {
            let error = api(code, "x");
            let found = (is_not_found(&error), is_conflict(&error), is_gone(&error));
            assert_eq!(found, (not_found, conflict, gone), "{code}");
        }
    }
}

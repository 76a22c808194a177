//! `/logging`: `GET` shows the filter, `POST ?level=…` puts another in force.
//!
//! Entry point: [`logging_routes`].

use std::future::ready;

use http::StatusCode;
use serde_json::json;

use super::router::{Request, Response, Router};
use crate::telemetry::logs::Control;

/// Answers `/logging`.
pub fn logging_routes(control: &Control) -> Router {
    let (show, change) = (control.clone(), control.clone());
    Router::new()
        .get("/logging", move |_| ready(current(&show)))
        .post("/logging", move |request| ready(set(&change, &request)))
}

fn current(control: &Control) -> Response {
    Response::json(&json!({ "level": control.filter() }))
}

fn set(control: &Control, request: &Request) -> Response {
    let Some(filter) = request.query.get("level") else {
        let message = "no level: use POST /logging?level=info or ?level=info,ambit_hbone=debug";
        return Response::error(StatusCode::BAD_REQUEST, message);
    };
    match control.set(filter) {
        Ok(()) => {
            tracing::info!(filter, "log filter changed");
            current(control)
        }
        Err(error) => Response::error(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logs::{Settings, subscriber};

    #[test]
    fn filter_is_shown_and_changed_and_invalid_ones_are_refused() {
        let (_subscriber, control) =
            subscriber(&Settings::default(), std::io::sink).expect("the default filter is good");
        let level = |level: &str| Request {
            query: [("level".to_owned(), level.to_owned())].into(),
            ..Request::default()
        };
        for (name, request, status, says, filter) in [
            ("good", level("debug,access=off"), 200, "debug,access=off", "debug,access=off"),
            ("misspelt", level("debgu"), 400, "is not a level", "debug,access=off"),
            ("absent", Request::default(), 400, "no level", "debug,access=off"),
        ] {
            let answer = set(&control, &request);
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status.as_u16(), status, "{name}: {body}");
            assert!(body.contains(says), "{name}: {body}");
            assert_eq!(control.filter(), filter, "{name}");
        }
    }
}

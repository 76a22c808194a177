//! The unverified claims of a service-account token. They prove nothing: they save reviews of tokens that the
//! API server would refuse, and bound how long a review is cached.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Of the names of service accounts as users: `system:serviceaccount:<namespace>:<name>`.
pub(super) const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Longer than any service-account token.
const MAX_LENGTH: usize = 16 * 1024;

#[derive(Debug, Deserialize)]
struct Payload {
    sub: String,
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    exp: u64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// The claims that are read.
#[derive(Debug)]
pub(super) struct Claims {
    subject: String,
    audiences: Vec<String>,
    pub(super) expires: SystemTime,
}

impl Claims {
    /// Of a JWT; none if it is not one.
    pub(super) fn read(token: &str) -> Option<Self> {
        if token.len() > MAX_LENGTH {
            return None;
        }
        let mut parts = token.split('.');
        let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let payload: Payload = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let audiences = match payload.aud {
            Audiences::One(audience) => vec![audience],
            Audiences::Many(audiences) => audiences,
        };
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(payload.exp))?;
        Some(Self { subject: payload.sub, audiences, expires })
    }

    /// Whether they are those of a token of `user` (any service account, if none is given) for this audience;
    /// else a reason for the metric, and a message.
    pub(super) fn check(&self, user: Option<&str>, audience: &str) -> Result<(), (&'static str, String)> {
        match user {
            Some(user) if self.subject != user => {
                return Err((
                    "service_account",
                    format!("the token is of {:?}, not of {user}", self.subject),
                ));
            }
            None if !self.subject.starts_with(ACCOUNT_PREFIX) => {
                let message = format!("the token is of {:?}, which is not a service account", self.subject);
                return Err(("service_account", message));
            }
            _ => {}
        }
        if !self.audiences.iter().any(|known| known == audience) {
            return Err(("audience", format!("the token is not meant for {audience}")));
        }
        if self.expires <= SystemTime::now() {
            return Err(("expired", "the token has expired".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn claims_of_tokens() {
        let rows = [
            ("a daemon's", r#"{"sub": "u", "aud": ["a", "b"], "exp": 99999999999}"#, Some(Ok(()))),
            ("one audience", r#"{"sub": "u", "aud": "a", "exp": 99999999999}"#, Some(Ok(()))),
            ("another's", r#"{"sub": "v", "aud": ["a"], "exp": 99999999999}"#, Some(Err("service_account"))),
            ("another audience", r#"{"sub": "u", "aud": ["b"], "exp": 99999999999}"#, Some(Err("audience"))),
            ("no audience", r#"{"sub": "u", "exp": 99999999999}"#, Some(Err("audience"))),
            ("expired", r#"{"sub": "u", "aud": ["a"], "exp": 1}"#, Some(Err("expired"))),
            ("without an end", r#"{"sub": "u", "aud": ["a"]}"#, Some(Err("expired"))),
            ("an end beyond time", r#"{"sub": "u", "aud": ["a"], "exp": 18446744073709551615}"#, None),
            ("without a subject", r#"{"aud": ["a"]}"#, None),
            ("not JSON", "{", None),
        ];
        for (name, payload, expected) in rows {
            let claims = Claims::read(&token(payload));
            let found = claims.map(|claims| claims.check(Some("u"), "a").map_err(|(reason, _)| reason));
            assert_eq!(found, expected, "{name}");
        }
        for (subject, expected) in [("system:serviceaccount:shop:web", Ok(())), ("u", Err("service_account"))]
        {
            let payload = format!(r#"{{"sub": "{subject}", "aud": "a", "exp": 99999999999}}"#);
            let claims = Claims::read(&token(&payload)).unwrap();
            assert_eq!(claims.check(None, "a").map_err(|(reason, _)| reason), expected, "{subject}");
        }
        for text in ["", "a.b", "a.b.c.d", "x.!.y", &"a".repeat(20_000)] {
            assert!(Claims::read(text).is_none(), "{text:.20}");
        }
    }
}

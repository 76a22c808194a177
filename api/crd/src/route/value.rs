//! Times and retries: [`timeouts`], [`retry`].

use std::time::Duration;

use ambit_core::derive::RuleEffect;
use ambit_core::route::{Retry, Timeouts};
use http::StatusCode;

use super::notes::Notes;
use crate::gateway_api as written;

/// The pause where none is written.
const BACKOFF: Duration = Duration::from_millis(25);
/// Where no number of attempts is written.
const ATTEMPTS: u32 = 2;

pub(super) fn timeouts(notes: &mut Notes<'_>, written: &written::Timeouts) -> Timeouts {
    // Zero switches the limit off.
    let mut read = |field: &str, text: &Option<String>| {
        duration(notes, field, text.as_deref()?).filter(|time| !time.is_zero())
    };
    let request = read("timeouts.request", &written.request);
    let backend_request = read("timeouts.backendRequest", &written.backend_request);
    if let (Some(request), Some(backend)) = (request, backend_request)
        && backend > request
    {
        let message = "is longer than the whole request may take";
        notes.add("timeouts.backendRequest", message, RuleEffect::Dropped);
    }
    Timeouts { request, backend_request }
}

pub(super) fn retry(notes: &mut Notes<'_>, written: &written::Retry) -> Retry {
    let mut codes = Vec::with_capacity(written.codes.len());
    for (index, code) in written.codes.iter().enumerate() {
        let status = u16::try_from(*code).ok().filter(|code| (400..600).contains(code));
        if let Some(status) = status.and_then(|code| StatusCode::from_u16(code).ok()) {
            codes.push(status);
        } else {
            let message = format!("{code} is not a status to try again after: 400 to 599");
            notes.add(&format!("retry.codes[{index}]"), message, RuleEffect::Dropped);
        }
    }
    let attempts = match written.attempts.map(u32::try_from) {
        None => ATTEMPTS,
        Some(Ok(attempts)) => attempts,
        Some(Err(_)) => {
            notes.add("retry.attempts", "is not a number of attempts", RuleEffect::Dropped);
            0
        }
    };
    let backoff = written.backoff.as_deref().and_then(|text| duration(notes, "retry.backoff", text));
    Retry { attempts, codes, backoff: backoff.unwrap_or(BACKOFF) }
}

/// A duration as Gateway API writes it (GEP-2257): up to four pairs of a number and one of `h`, `m`, `s`,
/// `ms`.
fn duration(notes: &mut Notes<'_>, field: &str, text: &str) -> Option<Duration> {
    let read = parse(text);
    if read.is_none() {
        notes.add(field, format!("{text:?} is not a duration, such as 1m30s"), RuleEffect::Dropped);
    }
    read
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    let mut pairs = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok().filter(|_| (1..=5).contains(&digits))?;
        rest = &rest[digits..];
        let unit = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let one = match &rest[..unit] {
            "h" => Duration::from_hours(1),
            "m" => Duration::from_mins(1),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        sum = sum.checked_add(one.checked_mul(u32::try_from(number).ok()?)?)?;
        rest = &rest[unit..];
        pairs += 1;
    }
    (1..=4).contains(&pairs).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        let rows = [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            ("0s", Some(0)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("99999h", Some(359_996_400_000)),
            ("100000h", None),
            ("1h1m1s1ms1s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("1sß", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text), expected.map(Duration::from_millis), "{text:?}");
        }
    }
}

//! What a source says of itself for telemetry, as W3C baggage with Istio's keys: [`Baggage`].

use http::HeaderValue;

/// Nothing in it is proven. Empty texts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: String,
    /// `k8s.namespace.name`
    pub namespace: String,
    /// `deployment`, `cronjob`, `pod` or `job`: the middle of `k8s.<kind>.name`.
    pub workload_kind: String,
    /// `k8s.<kind>.name`
    pub workload: String,
    /// `service.name`
    pub service: String,
    /// `service.version`
    pub version: String,
    /// `cloud.region`
    pub region: String,
    /// `cloud.availability_zone`
    pub zone: String,
}

const KINDS: [&str; 4] = ["deployment", "cronjob", "pod", "job"];

impl Baggage {
    /// `None` when there is nothing to say.
    pub(super) fn to_header(&self) -> Option<HeaderValue> {
        let workload_key = format!("k8s.{}.name", self.workload_kind);
        let known_kind = KINDS.contains(&self.workload_kind.as_str());
        let text = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (if known_kind { &workload_key } else { "" }, &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ]
        .into_iter()
        .filter(|(key, value)| !key.is_empty() && !value.is_empty())
        .map(|(key, value)| format!("{key}={}", encode(value)))
        .collect::<Vec<_>>()
        .join(",");
        if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
    }

    /// Reads what it understands. The first of a key counts.
    pub(super) fn from_header(value: &HeaderValue) -> Option<Self> {
        let mut baggage = Self::default();
        for member in value.to_str().ok()?.split(',') {
            // What follows a semicolon are properties of the member.
            let pair = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = pair.split_once('=') else { continue };
            let Some(value) = decode(value.trim()) else { continue };
            baggage.set(key.trim(), value);
        }
        (baggage != Self::default()).then_some(baggage)
    }

    fn set(&mut self, key: &str, value: String) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let kind = key.strip_prefix("k8s.").and_then(|rest| rest.strip_suffix(".name"));
                let Some(kind) = kind.filter(|kind| KINDS.contains(kind)) else { return };
                if self.workload.is_empty() {
                    kind.clone_into(&mut self.workload_kind);
                }
                &mut self.workload
            }
        };
        if field.is_empty() {
            *field = value;
        }
    }
}

/// Percent-encodes what may not stand in a value.
fn encode(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%' | b'=') {
            text.push(char::from(byte));
        } else {
            text.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    text
}

fn digit(half: u8) -> char {
    char::from_digit(half.into(), 16).map_or('0', |digit| digit.to_ascii_uppercase())
}

/// `None` for what is no percent-encoded UTF-8, or holds control characters (it goes into logs).
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

//! The source workload's description of itself for telemetry, as W3C baggage with Istio's keys: [`Baggage`].

use http::HeaderValue;

/// None of it is proven. Empty fields are left out.
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
    /// `None` if all fields are empty.
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

    /// Reads what it understands, of one header or several. Of a key that is there twice the last counts, as
    /// others read it.
    pub(super) fn from_headers<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let mut baggage = Self::default();
        let texts = values.into_iter().filter_map(|value| value.to_str().ok());
        for member in texts.flat_map(|text| text.split(',')) {
            // What follows a semicolon are properties of the member.
            let pair = member.split(';').next().unwrap_or_default();
            if let Some((key, value)) = pair.split_once('=') {
                baggage.set(key.trim(), decode(value.trim()));
            }
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
                (if value.is_empty() { "" } else { kind }).clone_into(&mut self.workload_kind);
                &mut self.workload
            }
        };
        *field = value;
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

/// Others send names as they are, so what is no percent-encoded UTF-8 is taken as it stands. Empty for what
/// holds control characters: it goes into logs.
fn decode(value: &str) -> String {
    let text = percent_decoded(value).unwrap_or_else(|| value.to_owned());
    if text.chars().any(char::is_control) { String::new() } else { text }
}

fn percent_decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

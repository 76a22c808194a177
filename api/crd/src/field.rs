//! The mistakes of an object, by field: [`Report`]. Checks report and go on, so that all mistakes are shown
//! at once.

use std::fmt;
use std::net::IpAddr;

use ambit_core::model::IpBlock;

/// A mistake in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The field's path: `spec.rules[0].from[0].source.ipBlocks[1]`. Empty: the object as a whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Collects the mistakes of one object.
#[derive(Debug, Default)]
pub(crate) struct Report {
    mistakes: Vec<Mistake>,
}

impl Report {
    pub(crate) fn add(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        self.mistakes.push(Mistake { field: field.to_string(), message: message.to_string() });
    }

    /// The value, if nothing was wrong.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Vec<Mistake>> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(self.mistakes) }
    }

    /// A list of at most `most` items: the API server bounds the cost of validation.
    pub(crate) fn at_most(&mut self, field: impl fmt::Display, length: usize, most: usize) {
        if length > most {
            self.add(field, format_args!("has {length} items, more than {most}"));
        }
    }

    /// A port number from 1.
    pub(crate) fn port(&mut self, field: impl fmt::Display, number: impl Into<i64>) -> Option<u16> {
        let number = number.into();
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.add(field, format_args!("{number} is not a port: 1 to 65535"));
                None
            }
        }
    }

    /// A port as text, as in AuthorizationPolicy.
    pub(crate) fn port_text(&mut self, field: impl fmt::Display, text: &str) -> Option<u16> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u16>() {
            Ok(port) if digits && port != 0 => Some(port),
            _ => {
                self.add(field, format_args!("{text:?} is not a port: 1 to 65535"));
                None
            }
        }
    }

    /// An IP address.
    pub(crate) fn address(&mut self, field: impl fmt::Display, text: &str) -> Option<IpAddr> {
        let address = text.parse::<IpAddr>().ok();
        if address.is_none() {
            self.add(field, format_args!("{text:?} is not an IP address"));
        }
        address.map(|address| address.to_canonical())
    }

    /// An address or a block of addresses: `10.0.0.0/8`, `2001:db8::1`.
    pub(crate) fn block(&mut self, field: impl fmt::Display, text: &str) -> Option<IpBlock> {
        let block = text.parse::<IpBlock>().ok();
        if block.is_none() {
            self.add(field, format_args!("{text:?} is neither an IP address nor a CIDR block"));
        }
        block.map(|IpBlock(block)| IpBlock(block.trunc()))
    }

    /// A DNS subdomain, as Kubernetes requires of names: names become part of identities and host names.
    pub(crate) fn name(&mut self, field: impl fmt::Display, text: &str) {
        let valid = text.len() <= 253 && text.split('.').all(is_label);
        if !valid {
            self.add(field, format_args!("{text:?} is not a name: lower-case letters, digits, '-' and '.'"));
        }
    }

    /// A DNS label, as Kubernetes requires of namespaces.
    pub(crate) fn label(&mut self, field: impl fmt::Display, text: &str) {
        if text.len() > 63 || !is_label(text) {
            self.add(field, format_args!("{text:?} is not a DNS label: lower-case letters, digits and '-'"));
        }
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    inner(*first) && inner(*last) && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(check: impl FnOnce(&mut Report)) -> Option<String> {
        let mut report = Report::default();
        check(&mut report);
        report.finish(()).err().map(|mistakes| mistakes[0].to_string())
    }

    #[test]
    fn ports_are_validated() {
        for (text, good) in [
            ("1", true),
            ("65535", true),
            ("0", false),
            ("65536", false),
            ("-1", false),
            ("+80", false),
            ("80 ", false),
            ("http", false),
            ("", false),
        ] {
            assert_eq!(mistake(|report| _ = report.port_text("p", text)).is_none(), good, "{text:?}");
        }
        assert_eq!(
            mistake(|r| _ = r.port("p", 70_000)).as_deref(),
            Some("p: 70000 is not a port: 1 to 65535")
        );
    }

    #[test]
    fn blocks_are_validated() {
        let rows = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("2001:db8::1", Some("2001:db8::1/128")),
            ("::/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("10.0.0", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let block = Report::default().block("b", text).map(|block| block.0.to_string());
            assert_eq!(block.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn names_are_validated() {
        for (text, name, label) in [
            ("cart", true, true),
            ("cart-1", true, true),
            ("cart.v1", true, false),
            ("Cart", false, false),
            ("-cart", false, false),
            ("cart/../x", false, false),
            ("", false, false),
            (&"a".repeat(64), true, false),
            (&"a".repeat(254), false, false),
        ] {
            assert_eq!(mistake(|report| report.name("n", text)).is_none(), name, "name {text:?}");
            assert_eq!(mistake(|report| report.label("n", text)).is_none(), label, "label {text:?}");
        }
    }
}

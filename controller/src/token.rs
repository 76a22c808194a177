//! Nodes' tokens: `v1.<node>.<mac>`, an HMAC-SHA256 over the node's name under a key that only the controller
//! holds. Nothing is stored per node. Way in: [`Tokens`].

use aws_lc_rs::{hmac, rand};

use crate::hex;
use crate::state::{self, Folder};

const FILE: &str = "token.key";
const KEY_BYTES: usize = 32;
/// Keeps these codes apart from whatever else the key may sign one day.
const PURPOSE: &[u8] = b"ambit node token v1\0";

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(
        "{FILE} is damaged: it must hold {KEY_BYTES} bytes in hexadecimal; without it every node needs a \
         new bootstrap file"
    )]
    Damaged,
    #[error("the random number generator failed")]
    Random,
    #[error("{0:?} is not a node's name: a DNS name in lower case")]
    Node(String),
}

/// Makes and checks tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    key: hmac::Key,
}

impl Tokens {
    /// Reads the key, making one the first time. The caller holds the folder's lock.
    pub(crate) fn open(folder: &Folder) -> Result<Self, Error> {
        let secret = if let Some(text) = folder.read_secret(FILE)? {
            hex::decode(text.trim()).ok_or(Error::Damaged)?
        } else {
            let mut secret = [0; KEY_BYTES];
            rand::fill(&mut secret).map_err(|_| Error::Random)?;
            folder.write_secret(FILE, &hex::encode(&secret))?;
            secret
        };
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secret) })
    }

    /// The token of a node.
    pub(crate) fn issue(&self, node: &str) -> Result<String, Error> {
        if !is_node_name(node) {
            return Err(Error::Node(node.to_owned()));
        }
        let code = hmac::sign(&self.key, &message(node));
        Ok(format!("v1.{node}.{}", hex::encode(code.as_ref())))
    }

    /// The node that a token belongs to.
    pub(crate) fn node<'t>(&self, token: &'t str) -> Option<&'t str> {
        let (node, code) = token.strip_prefix("v1.")?.rsplit_once('.')?;
        let code: [u8; 32] = hex::decode(code)?;
        hmac::verify(&self.key, &message(node), &code).ok()?;
        is_node_name(node).then_some(node)
    }
}

fn message(node: &str) -> Vec<u8> {
    [PURPOSE, node.as_bytes()].concat()
}

/// A DNS subdomain, as Kubernetes asks of nodes.
fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().copied().is_some_and(inner)
                && bytes.last().copied().is_some_and(inner)
                && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let tokens = Tokens::open(&folder).unwrap();
        (temporary, tokens)
    }

    #[test]
    fn a_token_names_its_node_and_survives_a_restart() {
        let (temporary, tokens) = tokens();
        let token = tokens.issue("node-1.rack.example").unwrap();
        assert_eq!(tokens.node(&token), Some("node-1.rack.example"));
        let again = Tokens::open(&Folder::open(temporary.path()).unwrap()).unwrap();
        assert_eq!(again.node(&token), Some("node-1.rack.example"));
        assert_eq!(again.issue("node-1.rack.example").unwrap(), token);
    }

    #[test]
    fn wrong_tokens_are_refused() {
        let (_temporary, tokens) = tokens();
        let (_other_folder, other) = self::tokens();
        let token = tokens.issue("a").unwrap();
        let code = token.strip_prefix("v1.a.").unwrap();
        let flipped = if code.starts_with('0') { "1" } else { "0" };
        let rows = [
            ("empty", String::new()),
            ("another node's name", format!("v1.b.{code}")),
            ("another version", format!("v2.a.{code}")),
            ("one digit changed", format!("v1.a.{flipped}{}", &code[1..])),
            ("cut short", format!("v1.a.{}", &code[..62])),
            ("longer", format!("v1.a.{code}00")),
            ("not hexadecimal", format!("v1.a.{}", "g".repeat(64))),
            ("not ASCII", format!("v1.a.{}", "é".repeat(32))),
            ("another controller's", other.issue("a").unwrap()),
            ("no node", format!("v1..{code}")),
            ("no code", "v1.a.".to_owned()),
        ];
        for (name, wrong) in rows {
            assert_eq!(tokens.node(&wrong), None, "{name}");
        }
    }

    #[test]
    fn nodes_have_dns_names() {
        let (_temporary, tokens) = tokens();
        for (name, good) in [
            ("a", true),
            ("n-1.x", true),
            ("", false),
            ("A", false),
            ("a b", false),
            ("a..b", false),
            ("-a", false),
        ] {
            assert_eq!(tokens.issue(name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn a_damaged_key_is_reported_and_not_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        folder.write_secret(FILE, "abc").unwrap();
        assert!(matches!(Tokens::open(&folder), Err(Error::Damaged)));
        assert_eq!(folder.read_secret(FILE).unwrap().as_deref(), Some("abc"));
    }
}

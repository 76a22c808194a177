//! Tokens of nodes: `v1.<node>.<mac>`, an HMAC-SHA256 over the node's name with a key that only the
//! controller has. Nothing is stored per node. Entry point: [`Tokens`].

use aws_lc_rs::{hmac, rand};

use crate::hex;
use crate::state::{self, Folder};

const FILE: &str = "token.key";
const KEY_BYTES: usize = 32;
/// Separates these MACs from other uses of the key.
const PURPOSE: &[u8] = b"ambit node token v1\0";

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(
        "failed to parse {FILE}: it must hold {KEY_BYTES} bytes in hexadecimal; without it every node needs \
         a new bootstrap file"
    )]
    Damaged,
    #[error("failed to read random numbers")]
    Random,
    #[error("failed to issue a token for node {0:?}: its name must be a DNS name in lower case")]
    Node(String),
}

/// Issues and verifies tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    key: hmac::Key,
}

impl Tokens {
    /// Reads the key, or creates it. The caller holds the folder's lock.
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

    /// The node of a token; none if it is not valid.
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

/// A DNS subdomain, as Kubernetes requires of node names.
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
mod tests;

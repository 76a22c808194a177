//! The node's bootstrap file ([`Bootstrap`]): its controller's address and roots, and the node's token.
//!
//! YAML (JSON is YAML too), for its owner only. The controller writes one per node; `ztunnel` reads it.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{self, Mistake};
use crate::error::Error;

/// What a node must know before it can ask for anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The node's name, as in workloads' `node`.
    pub node: String,
    /// The controller's `host:port`, for xDS and certificates.
    pub controller: String,
    /// The DNS name in the controller's certificate.
    pub server_name: String,
    /// The trusted roots of the controller's and peers' certificates, as PEM. Several while they rotate.
    pub root: String,
    /// Sent to the controller with every request.
    pub token: Token,
}

/// A secret: it is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Keeps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the request that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Bootstrap {
    /// Reads a node's file. Refuses one that others may read, since it holds a secret.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::ReadBootstrap { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::BootstrapMode { path: path.to_owned(), mode });
        }
        let text = std::io::read_to_string(file).map_err(failed)?;
        Self::parse(&text).map_err(|(field, message)| Error::ParseBootstrap {
            path: path.to_owned(),
            field,
            message,
        })
    }

    /// Writes the file for its owner only, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::WriteBootstrap { path: path.to_owned(), source };
        let text = serde_yaml_ng::to_string(self).map_err(|error| failed(std::io::Error::other(error)))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let beside = path.with_file_name(name);
        // A left-over of a crash would keep its own mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, Mistake> {
        let bootstrap: Self = config::parse(text)?;
        bootstrap.check()?;
        Ok(bootstrap)
    }

    fn check(&self) -> Result<(), Mistake> {
        config::not_empty("node", &self.node)?;
        config::host_and_port("controller", &self.controller)?;
        config::not_empty("server_name", &self.server_name)?;
        if let Err(error) = crate::roots::read(&self.root) {
            return Err(("root".to_owned(), error.to_string()));
        }
        let token = self.token.reveal();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(("token".to_owned(), "is empty or not printable ASCII".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! How a daemon reaches and trusts its controller: [`Controller`]. Its token and roots are given once, or lie
//! in files that are replaced while it runs (a projected service-account token, a mounted ConfigMap).

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::bootstrap::{Bootstrap, Token};
use crate::config::{self, Mistake};
use crate::error::Error;

/// The controller of a node's daemon.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `host:port`, for xDS and certificates.
    pub address: String,
    /// The DNS name in its certificate.
    pub server_name: String,
    secrets: Secrets,
}

/// The part of a configuration file that describes the controller.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `host:port`, for xDS and certificates.
    pub address: String,
    /// The DNS name in its certificate.
    pub server_name: String,
    /// The trusted roots of the controller's and peers' certificates, as PEM.
    pub root_file: PathBuf,
    /// The daemon's token.
    pub token_file: PathBuf,
}

#[derive(Clone, Debug)]
enum Secrets {
    Given { roots: String, token: Token },
    Files { roots: PathBuf, token: PathBuf },
}

impl From<Bootstrap> for Controller {
    fn from(bootstrap: Bootstrap) -> Self {
        let Bootstrap { controller, server_name, root, token, node: _ } = bootstrap;
        Self { address: controller, server_name, secrets: Secrets::Given { roots: root, token } }
    }
}

impl Settings {
    /// Checks what can be checked before the files are read.
    pub fn check(&self) -> Result<(), Mistake> {
        config::host_and_port("address", &self.address)?;
        config::not_empty("server_name", &self.server_name)
    }
}

impl From<Settings> for Controller {
    fn from(settings: Settings) -> Self {
        let Settings { address, server_name, root_file, token_file } = settings;
        Self { address, server_name, secrets: Secrets::Files { roots: root_file, token: token_file } }
    }
}

impl Controller {
    /// The trusted roots of the controller's and peers' certificates, as PEM. Several while they rotate.
    pub fn roots(&self) -> Result<String, Error> {
        match &self.secrets {
            Secrets::Given { roots, .. } => Ok(roots.clone()),
            Secrets::Files { roots, .. } => {
                fs::read_to_string(roots).map_err(|source| Error::ReadRoots { path: roots.clone(), source })
            }
        }
    }

    /// The daemon's token, sent with every request.
    pub fn token(&self) -> Result<Token, Error> {
        match &self.secrets {
            Secrets::Given { token, .. } => Ok(token.clone()),
            Secrets::Files { token: path, .. } => {
                let text = fs::read_to_string(path)
                    .map_err(|source| Error::ReadToken { path: path.clone(), source })?;
                let text = text.trim();
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(Error::TokenForm { path: path.clone() });
                }
                Ok(Token::new(text))
            }
        }
    }
}

#[cfg(test)]
mod tests;

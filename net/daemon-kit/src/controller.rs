//! How a daemon reaches and trusts its controller: [`Controller`]. What it shows and whom it trusts are given
//! once, or lie in files that others replace while it runs (a projected service-account token, a mounted
//! ConfigMap).

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::Error;
use crate::bootstrap::{Bootstrap, Token};
use crate::config::{self, Mistake};

/// The controller of a node's daemon.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `host:port`, for xDS and certificates.
    pub address: String,
    /// The name on its certificate.
    pub server_name: String,
    secrets: Secrets,
}

/// The part of a configuration file that says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `host:port`, for xDS and certificates.
    pub address: String,
    /// The name on its certificate.
    pub server_name: String,
    /// The roots that may vouch for it and for peers, as PEM.
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
    /// The roots that may vouch for the controller and for peers, as PEM. Several while they rotate.
    pub fn roots(&self) -> Result<String, Error> {
        match &self.secrets {
            Secrets::Given { roots, .. } => Ok(roots.clone()),
            Secrets::Files { roots, .. } => {
                fs::read_to_string(roots).map_err(|source| Error::ReadRoots { path: roots.clone(), source })
            }
        }
    }

    /// What is shown with every request.
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
mod tests {
    use super::*;

    #[test]
    fn files_are_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (root_file, token_file) = (folder.path().join("root.pem"), folder.path().join("token"));
        let settings = Settings {
            address: "controller:15012".to_owned(),
            server_name: "controller".to_owned(),
            root_file: root_file.clone(),
            token_file: token_file.clone(),
        };
        settings.check().unwrap();
        let controller = Controller::from(settings);
        assert!(matches!(controller.token(), Err(Error::ReadToken { .. })));
        assert!(matches!(controller.roots(), Err(Error::ReadRoots { .. })));
        for (token, roots) in [("first", "one"), ("second", "two")] {
            fs::write(&token_file, format!("{token}\n")).unwrap();
            fs::write(&root_file, roots).unwrap();
            assert_eq!(controller.token().unwrap().reveal(), token);
            assert_eq!(controller.roots().unwrap(), roots);
        }
        for bad in ["", "\n", "two words", "two\nlines"] {
            fs::write(&token_file, bad).unwrap();
            assert!(matches!(controller.token(), Err(Error::TokenForm { .. })), "{bad:?}");
        }
    }

    #[test]
    fn mistakes_name_their_field() {
        let settings = |address: &str, server_name: &str| Settings {
            address: address.to_owned(),
            server_name: server_name.to_owned(),
            root_file: PathBuf::new(),
            token_file: PathBuf::new(),
        };
        for (name, settings, field) in [
            ("no port", settings("host", "n"), "address"),
            ("no host", settings(":1", "n"), "address"),
            ("port 0", settings("host:0", "n"), "address"),
            ("no name", settings("host:1", ""), "server_name"),
        ] {
            assert_eq!(settings.check().map_err(|(field, _)| field), Err(field.to_owned()), "{name}");
        }
    }
}

//! The node's bootstrap file: where its controller is, how to recognise it, and the token that says which
//! node asks.
//!
//! YAML (JSON is YAML too), for its owner only. The controller writes one per node; `ztunnel` reads it.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::{self, Mistake};

/// What a node must know before it can ask for anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The node's name, as in workloads' `node`.
    pub node: String,
    /// The controller's `host:port`, for xDS and certificates.
    pub controller: String,
    /// The name on the controller's certificate.
    pub server_name: String,
    /// The roots that may vouch for the controller and for peers, as PEM. Several while they rotate.
    pub root: String,
    /// Shown to the controller with every request.
    pub token: Token,
}

/// A secret: it is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
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
mod tests {
    use super::*;

    fn bootstrap() -> Bootstrap {
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root").pem();
        Bootstrap {
            node: "node-a".to_owned(),
            controller: "[fd00::1]:15012".to_owned(),
            server_name: "ambit-controller".to_owned(),
            root,
            token: Token::new("s3cret.dG9rZW4="),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node-a.yaml");
        let first = bootstrap();
        first.write(&path).expect("written");
        assert_eq!(Bootstrap::read(&path).expect("read"), first);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        // Replaced whole, whatever mode somebody gave the old one.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let second = Bootstrap { node: "node-b".to_owned(), ..bootstrap() };
        second.write(&path).expect("written");
        assert_eq!(Bootstrap::read(&path).expect("read"), second);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node-a.yaml");
        bootstrap().write(&path).expect("written");
        for mode in [0o640, 0o604, 0o660, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let error = Bootstrap::read(&path).expect_err("others may read it");
            assert!(matches!(error, Error::BootstrapMode { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains("set it to 0600"), "{error}");
        }
    }

    #[test]
    fn json_is_read_too() {
        let text = serde_json::to_string(&bootstrap()).expect("JSON");
        assert!(Bootstrap::parse(&text).is_ok());
    }

    #[test]
    fn a_bad_file_names_the_field() {
        let good = serde_json::to_value(bootstrap()).expect("JSON");
        for (name, field, value) in [
            ("no node", "node", serde_json::json!("")),
            ("no port", "controller", serde_json::json!("controller")),
            ("no host", "controller", serde_json::json!(":15012")),
            ("port 0", "controller", serde_json::json!("controller:0")),
            ("no server name", "server_name", serde_json::json!("")),
            ("no root", "root", serde_json::json!("hello")),
            ("no token", "token", serde_json::json!("")),
            ("token with a line feed", "token", serde_json::json!("a\nb")),
            ("wrong type", "node", serde_json::json!({ "a": 1 })),
        ] {
            let mut document = good.clone();
            document[field] = value;
            let (found, message) = Bootstrap::parse(&document.to_string()).expect_err(name);
            assert_eq!(found, field, "{name}: {message}");
        }
        let mut unknown = good.clone();
        unknown["colour"] = serde_json::json!("red");
        let (_, message) = Bootstrap::parse(&unknown.to_string()).expect_err("unknown field");
        assert!(message.contains("colour"), "{message}");
    }

    #[test]
    fn the_token_is_not_printed() {
        assert!(!format!("{:?}", bootstrap()).contains("s3cret"));
    }
}

//! `controller bootstrap`: the file with which a node's daemon reaches and trusts the controller.

use std::path::Path;

use ambit_daemon_kit::bootstrap::{Bootstrap, Token};
use anyhow::{Context, ensure};

use crate::config::Config;
use crate::secrets::Secrets;
use crate::state::Folder;

/// Writes a node's file; creates the state folder and the CA if they do not exist.
pub(crate) fn write(config_file: &Path, node: &str, address: &str, output: &Path) -> anyhow::Result<()> {
    let config = Config::read(config_file)?;
    ensure!(is_host_and_port(address), "--address {address}: not host:port");
    let files = config.files().context("bootstrap files are only for nodes outside Kubernetes")?;
    let folder = Folder::open(&files.state)?;
    let Secrets { authority, tokens } = Secrets::open(&config, &folder)?;
    let bootstrap = Bootstrap {
        node: node.to_owned(),
        controller: address.to_owned(),
        server_name: config.server_name,
        root: authority.root_pem().to_owned(),
        token: Token::new(tokens.issue(node)?),
    };
    bootstrap.write(output)?;
    Ok(())
}

/// `controller.example:15012`, `10.0.0.1:15012`, `[fd00::1]:15012`.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = |host: &str| !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']);
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = bracketed.map_or_else(|| bare(host), |inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
    host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_flag_is_validated() {
        for (text, good) in [
            ("controller.example:15012", true),
            ("10.0.0.1:15012", true),
            ("[fd00::1]:15012", true),
            ("fd00::1:15012", false),
            ("[fd00]:15012", false),
            ("controller", false),
            (":15012", false),
            ("controller:0", false),
            ("controller:http", false),
            ("https://controller:15012", false),
        ] {
            assert_eq!(is_host_and_port(text), good, "{text:?}");
        }
    }
}

//! The controller's secrets outside Kubernetes, in the state folder.

use std::time::SystemTime;

use crate::ca::Authority;
use crate::config::Config;
use crate::state::Folder;
use crate::token::Tokens;

/// The CA and the key of the nodes' tokens; created the first time.
pub(crate) struct Secrets {
    pub(crate) authority: Authority,
    pub(crate) tokens: Tokens,
}

impl Secrets {
    /// Reads them, or creates them.
    pub(crate) fn open(config: &Config, folder: &Folder) -> anyhow::Result<Self> {
        let _lock = folder.lock()?;
        let trust_domain = &config.derive.trust_domain;
        let authority = Authority::open(folder, trust_domain, config.max_certificate_ttl, SystemTime::now())?;
        Ok(Self { authority, tokens: Tokens::open(folder)? })
    }
}

//! Many requests to a real API server, by curl.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ambit_cluster::Cluster;
use anyhow::{Context, Result};
use serde_json::Value;

use crate::kubernetes::run;

/// The API server, as its administrator.
#[derive(Debug)]
pub struct Api {
    server: String,
    folder: PathBuf,
    credentials: [String; 2],
}

impl Api {
    /// The cluster's; files go to the folder.
    pub fn new(cluster: &Cluster, folder: &Path) -> Result<Self> {
        let view = run(&mut cluster.kubectl(&["config", "view", "--raw", "-o", "json"]))?;
        let config: Value = serde_json::from_str(&view)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?.to_owned();
        let user = &config["users"][0]["user"];
        let file = |name: &str| -> Result<String> {
            if let Some(path) = user[name].as_str() {
                return Ok(path.to_owned());
            }
            let data = user[format!("{name}-data")].as_str().with_context(|| format!("no {name}"))?;
            let path = folder.join(name);
            let decoded =
                run(Command::new("bash")
                    .args(["-c", &format!("echo {data} | base64 -d > {}", path.display())]));
            decoded.map(|_| path.display().to_string())
        };
        let credentials = [file("client-certificate")?, file("client-key")?];
        Ok(Self { server, folder: folder.to_owned(), credentials })
    }

    /// Sends method, path and body of them all, many at a time; every answer goes to a file of its number.
    pub fn send(&self, requests: &[(&str, String, Value)]) -> Result<Vec<PathBuf>> {
        let answers = self.folder.join("answers");
        std::fs::create_dir_all(&answers)?;
        let mut config = String::new();
        let mut files = Vec::new();
        for (number, (method, path, body)) in requests.iter().enumerate() {
            let answer = answers.join(number.to_string());
            let kind = if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(
                config,
                "{}url = \"{}{path}\"\nrequest = {method}\ncert = {}\nkey = \
                 {}\ninsecure\nsilent\nshow-error\nfail\nheader = \"content-type: {kind}\"\ndata = \
                 \"{body}\"\noutput = {}\n",
                if number == 0 { "" } else { "next\n" },
                self.server,
                self.credentials[0],
                self.credentials[1],
                answer.display()
            );
            files.push(answer);
        }
        let path = self.folder.join("requests");
        std::fs::write(&path, config)?;
        run(Command::new("curl").args(["--parallel", "--parallel-max", "32", "--config"]).arg(&path))?;
        Ok(files)
    }
}

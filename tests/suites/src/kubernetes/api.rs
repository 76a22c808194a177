//! Requests at the API server with a token, and what becomes of them: [`Api`] and [`Fate`].

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Mesh, run};

/// The API server.
#[derive(Debug)]
pub struct Api {
    server: String,
}

impl Api {
    /// That of the mesh's cluster.
    pub fn of(mesh: &Mesh) -> Result<Self> {
        let config: Value = serde_json::from_str(&mesh.kubectl(&["config", "view", "--raw", "-o", "json"])?)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?;
        Ok(Self { server: server.to_owned() })
    }

    /// Asks with a token; nothing is changed. The status and the answer.
    pub fn ask(&self, token: &str, verb: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let kind = if verb == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let url = format!("{}{path}?dryRun=All", self.server);
        let headers = [format!("authorization: Bearer {token}"), format!("content-type: {kind}")];
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--insecure", "--request", verb]);
        command.args(["--header", &headers[0], "--header", &headers[1], "--write-out", "\n%{http_code}"]);
        if !body.is_null() {
            command.args(["--data", &body.to_string()]);
        }
        let said = run(command.arg(url))?;
        let (answer, status) = said.rsplit_once('\n').context("no status")?;
        Ok((status.parse()?, serde_json::from_str(answer).unwrap_or_default()))
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It is accepted and changes nothing: the API server ignores the field.
    Nothing,
    /// RBAC refuses it.
    Rbac,
    /// An admission policy refuses it.
    Policy,
}

/// Whether a request fares as expected; `before`: the object that it could change.
pub fn fares(
    api: &Api,
    token: &str,
    (verb, path, body): (&str, &str, &Value),
    before: Option<&Value>,
    expected: Fate,
) -> Result<()> {
    let (status, answer) = api.ask(token, verb, path, body)?;
    let message = answer["message"].as_str().unwrap_or_default();
    let unchanged = |before: &Value| {
        ["labels", "annotations", "ownerReferences", "finalizers"]
            .iter()
            .all(|field| before["metadata"][field] == answer["metadata"][field])
            && before["spec"] == answer["spec"]
    };
    let found = match status {
        200 | 201 if before.is_some_and(unchanged) => Fate::Nothing,
        200 | 201 => Fate::Done,
        403 => Fate::Rbac,
        422 if message.contains("ValidatingAdmissionPolicy 'ambit-") => Fate::Policy,
        _ => bail!("neither done nor refused: {status} {answer}"),
    };
    ensure!(found == expected, "{found:?}, not {expected:?}: {status} {message}");
    Ok(())
}

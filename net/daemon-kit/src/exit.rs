//! How a program ends: [`status`] prints an error on one line, the same in every daemon.

use std::fmt::Display;
use std::process::ExitCode;

/// Success, or failure with the error on standard error. Errors whose alternate form has their causes
/// (`anyhow`'s) are printed with them; never with a backtrace, whatever the environment says.
pub fn status(program: &str, ended: Result<(), impl Display>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

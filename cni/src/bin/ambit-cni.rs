//! The CNI plugin's process: variables and standard input in, one JSON document out, and an exit status.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use ambit_cni::plugin;

fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut input = Vec::new();
    let answer = match std::io::stdin().take(plugin::MAX_INPUT).read_to_end(&mut input) {
        Ok(_) => plugin::run(&environment, &input),
        Err(error) => plugin::Answer::unreadable(&error),
    };
    // A runtime that has closed the pipe still gets the exit status.
    _ = std::io::stdout().write_all(&answer.output);
    ExitCode::from(u8::from(!answer.success))
}

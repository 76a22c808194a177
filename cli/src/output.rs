//! Standard output: [`outln!`], a `println!` that gives an error where there is no reader, instead of a
//! panic.

use std::io::Write as _;

use crate::error::Error;

/// Prints a line.
macro_rules! outln {
    ($($words:tt)*) => { $crate::output::print(format_args!($($words)*)) };
}

pub(crate) use outln;

/// See [`outln!`].
pub(crate) fn print(line: std::fmt::Arguments<'_>) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

//! Results to standard output, everything else to standard error. A reader that has gone away
//! (`| head`) is not worth an error, and no panic.

use std::{
    fmt::Display,
    io::{Write, stderr, stdout},
};

/// A line of the result.
pub(super) fn result(line: impl Display) {
    let _ = writeln!(stdout(), "{line}");
}

/// A line for people.
pub(super) fn note(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

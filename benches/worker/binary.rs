//! How large the program is.

use anyhow::{Result, ensure};

use crate::{bed::Bed, figure::Figure};

pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    ensure!(bed.is_release, "only a release build counts: run scripts/bench, which makes one");
    let megabytes = std::fs::metadata(&bed.binary)?.len() as f64 / 1e6;
    let figure = Figure::new("binary", "stripped release", megabytes, " MB").at_most(25.0).bound(
        "no single part: our own code, the AWS SDK, TLS and the DevTools protocol's types are some 2 MB each",
    );
    Ok(vec![figure])
}

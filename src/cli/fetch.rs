//! A result for the one who waits: its outputs as files in a folder, its story on the terminal.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use contract::{
    ObjectUri,
    result::{JobResult, Output, Status},
    text::one_line,
};
use serde_json::{Value, json};
use tokio::{fs, io::AsyncWriteExt};
use uuid::Uuid;

use super::{Failed, print};
use crate::store::{ObjectStore, Stores};
use connector::stage::FileName;

/// Fetches every output file into `folder`; where each output is now, by its position.
pub(super) async fn outputs(
    result: &JobResult,
    stores: &Stores,
    folder: &Path,
) -> Result<BTreeMap<usize, PathBuf>, Failed> {
    let problem = |path: &Path, error: &dyn std::fmt::Display| {
        Failed::Environment(format!("{}: {error}", path.display()))
    };
    if result.outputs.iter().any(|output| output.file.is_some()) {
        fs::create_dir_all(folder).await.map_err(|error| problem(folder, &error))?;
    }
    let mut fetched: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut places = BTreeMap::new();
    for (position, output) in result.outputs.iter().enumerate() {
        let Some(file) = &output.file else { continue };
        // The same file can be listed by two nodes.
        if let Some(path) = fetched.get(&file.uri) {
            places.insert(position, path.clone());
            continue;
        }
        let name = FileName::parse(&file.filename).map_err(|error| Failed::Environment(error.to_string()))?;
        let uri: ObjectUri =
            file.uri.parse().map_err(|error: contract::UriError| Failed::Environment(error.to_string()))?;
        let object = stores.open(&uri).await.map_err(|error| Failed::Environment(error.to_string()))?;
        let part = folder.join(format!(".{}.part", Uuid::new_v4().simple()));
        let copied = async {
            let mut target = fs::File::create_new(&part).await?;
            tokio::io::copy(&mut object.into_reader(), &mut target).await?;
            target.flush().await?;
            settle(&part, folder, name.as_str()).await
        };
        let path = match copied.await {
            Ok(path) => path,
            Err(error) => {
                let _ = fs::remove_file(&part).await;
                return Err(problem(folder, &error));
            }
        };
        fetched.insert(file.uri.clone(), path.clone());
        places.insert(position, path);
    }
    Ok(places)
}

/// Gives a whole file its name; one that is there stays, the new one gets a number.
async fn settle(part: &Path, folder: &Path, name: &str) -> std::io::Result<PathBuf> {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let numbered = (2..).map(|number| format!("{stem}-{number}{extension}"));
    for name in std::iter::once(name.to_owned()).chain(numbered) {
        let path = folder.join(name);
        match fs::hard_link(part, &path).await {
            Ok(()) => {
                fs::remove_file(part).await?;
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}

/// Shows a result; the exit that belongs to it.
pub(super) fn show(
    result: &JobResult,
    places: &BTreeMap<usize, PathBuf>,
    as_json: bool,
) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: not worth an error.
    let _ = if as_json { show_json(&mut out, result, places) } else { show_text(&mut out, result, places) };
    if result.status == Status::Succeeded { Ok(()) } else { Err(Failed::Job) }
}

fn show_json(
    out: &mut impl Write,
    result: &JobResult,
    places: &BTreeMap<usize, PathBuf>,
) -> std::io::Result<()> {
    let mut value = serde_json::to_value(result)?;
    for (position, path) in places {
        if let Some(Value::Object(output)) = value.pointer_mut(&format!("/outputs/{position}")) {
            output.insert("path".into(), json!(path));
        }
    }
    writeln!(out, "{value}")
}

fn show_text(
    out: &mut impl Write,
    result: &JobResult,
    places: &BTreeMap<usize, PathBuf>,
) -> std::io::Result<()> {
    for warning in &result.warnings {
        print::note(format!("warning: {}", one_line(warning, 500)));
    }
    for (position, Output { node, text, file, .. }) in result.outputs.iter().enumerate() {
        match (places.get(&position), file, text) {
            (Some(path), _, _) => writeln!(out, "{}", path.display())?,
            (None, Some(file), _) => writeln!(out, "{}", file.uri)?,
            (None, None, Some(text)) => {
                writeln!(out, "node {}: {}", one_line(node, 80), one_line(text, 2000))?
            }
            (None, None, None) => {}
        }
    }
    if let Some(error) = &result.error {
        print::note(failure(error));
    }
    Ok(())
}

fn failure(error: &contract::result::JobError) -> String {
    let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let code = serde_json::to_value(error.code).map(name).unwrap_or_default();
    format!("job failed: {code}: {}", one_line(&error.message, 2000))
}

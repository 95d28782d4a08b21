//! `upload_data`, from the caller's side; the rules of placing are tested beside it in `crates/connector/src/stage`.

use std::fs;

use anyhow::{Result, ensure};
use connector::FolderType;
use connector::{ComfyConnector, PlaceError, Subfolder, UploadOptions};

use super::bed::Bed;

pub(crate) fn ephemeral() -> UploadOptions {
    UploadOptions { ephemeral: true, ..UploadOptions::default() }
}

pub(crate) async fn are_taken_or_refused(bed: &Bed, connector: &ComfyConnector) -> Result<()> {
    let in_folder = |folder: FolderType, subfolder: &str| {
        Ok::<_, anyhow::Error>(UploadOptions {
            folder,
            subfolder: Subfolder::parse(subfolder)?,
            ..ephemeral()
        })
    };
    let cat = bed.picture("cat.png")?;
    for (options, expected) in [
        (in_folder(FolderType::Input, "batch")?, "input/batch/cat.png"),
        (in_folder(FolderType::Output, "")?, "output/cat.png"),
        (in_folder(FolderType::Temp, "processing")?, "temp/processing/cat.png"),
        (in_folder(FolderType::Models, "checkpoints")?, "models/checkpoints/cat.png"),
    ] {
        let path = connector.upload_data(&cat, &options).await?;
        ensure!(path == bed.folder(expected) && fs::read(&path)? == fs::read(&cat)?, "{}", path.display());
        let again = connector.upload_data(&cat, &options).await;
        ensure!(matches!(again, Err(PlaceError::Exists(there)) if there == path));
    }
    connector.upload_data(&bed.picture("example.png")?, &ephemeral()).await?;
    let lora = UploadOptions { ephemeral: false, ..in_folder(FolderType::Models, "loras")? };
    connector.upload_data(&bed.source("kept.safetensors", "kept")?, &lora).await?;

    // There before: overwritten as asked, and not ours to remove.
    fs::write(bed.folder("input/theirs.txt"), "before")?;
    let overwriting = UploadOptions { overwrite: true, ..ephemeral() };
    connector.upload_data(&bed.source("theirs.txt", "after")?, &overwriting).await?;

    // Ours, then given for good. Twice: the third file may get the first one's inode number.
    connector.upload_data(&bed.source("twice.txt", "first")?, &ephemeral()).await?;
    let for_good = UploadOptions { overwrite: true, ..UploadOptions::default() };
    for content in ["second", "third"] {
        connector.upload_data(&bed.source("twice.txt", content)?, &for_good).await?;
    }

    let missing = connector.upload_data(&bed.dir.join("sources/none"), &ephemeral()).await;
    ensure!(matches!(missing, Err(PlaceError::SourceMissing(_))));
    let model = connector.upload_data(&cat, &in_folder(FolderType::Models, "")?).await;
    ensure!(matches!(model, Err(PlaceError::ModelSubfolderMissing)));
    for escaping in ["..", "../x", "/etc", "a/../../b", "a//b", r"..\x"] {
        ensure!(Subfolder::parse(escaping).is_err(), "{escaping}");
    }
    Ok(())
}

/// After the shutdown: what was there before, and what is not ephemeral. Folders that are empty then go as well.
pub(crate) fn are_gone_but_for_what_stays(bed: &Bed) -> Result<()> {
    ensure!(bed.names("input")? == ["theirs.txt", "twice.txt"], "{:?}", bed.names("input")?);
    ensure!(fs::read_to_string(bed.folder("input/twice.txt"))? == "third");
    ensure!(bed.names("models/checkpoints")?.is_empty());
    ensure!(bed.names("output")?.is_empty(), "{:?}", bed.names("output")?);
    ensure!(bed.names("models/loras")? == ["kept.safetensors"]);
    ensure!(fs::read_to_string(bed.folder("input/theirs.txt"))? == "after");
    Ok(())
}

//! Small JSON files that a data directory keeps for the program, apart from the node's own data.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use crate::failure::Failure;

/// The content of a file, or none where there is no file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, Failure> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, &error)),
    };
    serde_json::from_slice(&content).map(Some).map_err(|_| unreadable(path))
}

/// Replaces a file as a whole: after a crash it holds the old content or the new one.
pub(crate) fn write_json(path: &Path, content: &Value) -> Result<(), Failure> {
    let written = (|| {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(format!("{content:#}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|error| unusable(path, &error))
}

/// A file that is there but says nothing sensible.
pub(crate) fn unreadable(path: &Path) -> Failure {
    Failure::error(
        "data_directory",
        format!("{} is not readable as what it should be; restore it or remove it", path.display()),
    )
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::error("data_directory", format!("cannot use {}: {error}", path.display()))
}

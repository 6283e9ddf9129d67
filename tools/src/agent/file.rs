//! Files that survive a crash: the old one or the new one, whole.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

/// Reads JSON; what it is by default where there is no file.
///
/// # Errors
///
/// [`Error::Os`], [`Error::State`] for what is no such JSON.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(Error::os("read", path.display())(error)),
    };
    serde_json::from_str(&text).map_err(|source| Error::State {
        path: path.to_owned(),
        source,
    })
}

/// Writes JSON in the place of what was there; readable by nobody else.
///
/// # Errors
///
/// [`Error::Os`]; then the old file is there.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| Error::State {
        path: path.to_owned(),
        source,
    })?;
    replace(path, &text).map_err(Error::os("write", path.display()))
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Vec::<u32>::new());
        write(&path, &vec![1, 2]).unwrap();
        write(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), [3]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(&path, "[3").unwrap();
        let said = read::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(said.contains("names.json"), "{said}");
    }
}

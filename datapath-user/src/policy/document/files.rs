//! Documents in files and directories.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Reader;
use super::refusal::Refusal;

/// The largest file that is read, bytes.
pub(super) const LARGEST_FILE_BYTES: u64 = 64 << 20;
/// How names of files with documents end.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

impl Reader {
    /// Reads a file; of a directory, all files in it, as [`Self::directory`]. What cannot be read
    /// is refused.
    pub fn path(&mut self, path: &Path) {
        if path.is_dir() {
            self.directory(path);
        } else {
            self.read_file(path, File::open(path));
        }
    }

    /// Reads the files of a directory whose names end in `.yaml`, `.yml` or `.json`, in the order
    /// of their names. Hidden ones are left out, and those of directories inside it.
    pub fn directory(&mut self, path: &Path) {
        match files_of(path) {
            Ok(files) => {
                for file in files {
                    let opened = open_regular(&file);
                    self.read_file(&file, opened);
                }
            }
            Err(error) => self.refuse_file(path, &error),
        }
    }

    fn read_file(&mut self, path: &Path, file: io::Result<File>) {
        match file.and_then(text_of) {
            Ok(text) => self.text(&text, Some(path)),
            Err(error) => self.refuse_file(path, &error),
        }
    }

    fn refuse_file(&mut self, path: &Path, error: &io::Error) {
        self.refused.push(Refusal {
            id: None,
            kind: None,
            namespace: None,
            file: Some(path.to_owned()),
            line: 1,
            column: 1,
            problem: format!("it cannot be read: {error}"),
            help: None,
            excerpt: None,
            subject: None,
        });
    }
}

/// The files of a directory that may have documents: those whose names end in `.yaml`, `.yml` or
/// `.json`, in the order of their names, without hidden ones.
///
/// # Errors
///
/// What the file system says.
pub fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|extension| extension.to_str());
        let known = extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
        // Links are followed: so do directories look that a kubelet fills.
        if known && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Opens what is a file: a pipe in a directory would wait for somebody to write.
fn open_regular(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() {
        File::open(path)
    } else {
        Err(io::Error::other("it is not a file"))
    }
}

fn text_of(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LARGEST_FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE_BYTES {
        let why = format!("it is larger than {LARGEST_FILE_BYTES} bytes");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_in_order_and_without_strangers() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, policy: &str| {
            let text = format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: \
                 {policy}}}\nspec: {{podSelector: {{}}}}\n"
            );
            fs::write(directory.path().join(name), text).unwrap();
        };
        write("b.yaml", "two");
        write("a.yml", "one");
        write("c.json", "two");
        write("notes.txt", "three");
        write(".d.yaml", "four");
        fs::create_dir(directory.path().join("e.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", directory.path().join("f.yaml")).unwrap();
        fs::write(directory.path().join("g.yaml"), b"\xff").unwrap();
        let mut reader = Reader::default();
        reader.path(directory.path());
        reader.path(Path::new("/nonexistent/x.yaml"));
        let reading = reader.finish();
        let names: Vec<&str> = reading.documents.iter().map(|d| &*d.id.name).collect();
        assert_eq!(names, ["one", "two"]);
        let told: Vec<String> = reading.refused.iter().map(ToString::to_string).collect();
        let [none, twice, nowhere, bytes] = &told[..] else {
            panic!("{told:#?}");
        };
        assert!(
            none.starts_with("/nonexistent/x.yaml:1:1: it cannot be read: "),
            "{none}"
        );
        assert!(twice.contains("c.json:1:1: NetworkPolicy/default/two is there already, in "));
        assert!(twice.contains("b.yaml:1"), "{twice}");
        assert!(
            nowhere.contains("f.yaml:1:1: it cannot be read: "),
            "{nowhere}"
        );
        assert!(bytes.contains("g.yaml:1:1: it cannot be read: "), "{bytes}");
    }
}

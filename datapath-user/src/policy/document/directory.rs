//! A directory of documents that is followed.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::{Reader, Reading};
use crate::error::Error;
use crate::watch::{self, FileWatch};

/// A directory of documents that is followed: the files that [`Reader::directory`] reads, as they
/// are written, replaced, added and removed, also by a kubelet.
///
/// Files are best replaced by renaming others to their names. A file that is written in place is
/// read when nothing has been written for 200 ms, and one that is cut off in the middle of a
/// document is refused as any other that cannot be read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// None: the kernel does not tell, and only looking does.
    watch: Option<FileWatch>,
    said: Option<Reading>,
    problem: Option<String>,
}

impl Directory {
    /// Begins to follow a directory.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be listed. One that cannot be listed later is taken to say what
    /// it said before.
    pub fn follow(path: &Path) -> Result<Self, Error> {
        fs::read_dir(path).map_err(Error::file("list", path))?;
        Ok(Self {
            path: path.to_owned(),
            watch: FileWatch::directory(path),
            said: None,
            problem: None,
        })
    }

    /// Reads it; returns what it says, unless it says what it said the last time.
    pub fn look(&mut self) -> Option<&Reading> {
        // Armed before it is read: what comes after that is heard.
        if let Some(watch) = &self.watch {
            watch.arm();
            watch.drain();
        }
        if let Err(error) = fs::read_dir(&self.path) {
            let problem = error.to_string();
            if self.problem.as_ref() != Some(&problem) {
                let directory = self.path.display();
                tracing::warn!(%directory, problem, "policies: what it said before holds");
                self.problem = Some(problem);
            }
            return None;
        }
        self.problem = None;
        let mut reader = Reader::default();
        reader.directory(&self.path);
        let says = reader.finish();
        if self.said.as_ref() == Some(&says) {
            return None;
        }
        Some(self.said.insert(says))
    }

    /// What is wrong with the directory itself; what it said before holds until that is mended.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Waits until it may have changed, or a descriptor is ready to be read, or the time is over.
    /// After a change it waits on until nothing has changed for 200 ms, at most 5 s.
    ///
    /// # Errors
    ///
    /// What the kernel says of `wake`.
    pub fn wait(&self, wake: BorrowedFd<'_>, at_most: Duration) -> Result<(), Errno> {
        watch::wait(self.watch.as_ref(), wake, at_most)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_mins(5);

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{podSelector: {{}}}}\n"
        )
    }

    fn names(reading: Option<&Reading>) -> Option<Vec<String>> {
        let names = reading?.documents.iter().map(|doc| doc.id.name.clone());
        Some(names.collect())
    }

    #[test]
    fn what_a_directory_says_is_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("policies");
        assert!(matches!(Directory::follow(&path), Err(Error::File { .. })));
        fs::create_dir(&path).unwrap();
        let mut directory = Directory::follow(&path).unwrap();
        let (wake, mut waker) = UnixStream::pair().unwrap();
        assert_eq!(names(directory.look()), Some(vec![]));
        assert_eq!(names(directory.look()), None);

        fs::write(path.join("a.yaml"), policy("one")).unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        assert_eq!(names(directory.look()), Some(vec!["one".to_owned()]));

        // Written in place: emptied, and written a little later.
        let mut file = fs::File::create(path.join("a.yaml")).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            file.write_all(policy("two").as_bytes()).unwrap();
        });
        directory.wait(wake.as_fd(), LONG).unwrap();
        writer.join().unwrap();
        let mut said = names(directory.look());
        while said != Some(vec!["two".to_owned()]) {
            // A machine that is busy lets the writer come late.
            directory.wait(wake.as_fd(), LONG).unwrap();
            said = names(directory.look());
        }

        // A file that is broken is told, and the others stay.
        fs::write(path.join("b.json"), "{").unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        let said = directory.look().unwrap();
        assert_eq!((said.documents.len(), said.refused.len()), (1, 1));
        fs::remove_file(path.join("b.json")).unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        assert_eq!(names(directory.look()), Some(vec!["two".to_owned()]));

        // Without the directory it says what it said.
        fs::rename(&path, temporary.path().join("away")).unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        assert_eq!(names(directory.look()), None);
        assert!(directory.problem().is_some());
        fs::create_dir(&path).unwrap();
        assert_eq!(names(directory.look()), Some(vec![]));
        assert_eq!(directory.problem(), None);
        fs::write(path.join("c.yml"), policy("three")).unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        assert_eq!(names(directory.look()), Some(vec!["three".to_owned()]));

        // Somebody wants it to end.
        waker.write_all(b"x").unwrap();
        directory.wait(wake.as_fd(), LONG).unwrap();
        assert_eq!(names(directory.look()), None);
    }
}

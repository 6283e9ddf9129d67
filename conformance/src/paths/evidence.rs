//! What crossed the lab's interfaces while it was checked, kept where something failed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tempfile::TempDir;

use super::site::{Host, Site};
use crate::{
    capture::Capture,
    error::{Error, Result},
    signals::{Teardown, guarded},
};

/// Bytes kept of each frame: all headers, also of a tunnel, and a marker behind them.
const FRAME_BYTES: usize = 256;

/// Captures at work, in a directory of their own. Without [`Evidence::keep`] nothing is left of
/// them, unless a panic is under way.
///
/// Each host has a socket that sees every frame and a thread that writes their first bytes.
#[derive(Debug)]
pub(super) struct Evidence {
    path: PathBuf,
    captures: Vec<Capture>,
    directory: Directory,
    /// Removes the directory, unless it was kept.
    _teardown: Teardown,
}

/// A directory to be removed; none once it is kept or gone.
#[derive(Clone, Debug, Default)]
struct Directory(Arc<Mutex<Option<TempDir>>>);

impl Evidence {
    /// Begins to capture the uplinks of all nodes, and the interfaces of all pods and of the host
    /// outside.
    ///
    /// # Errors
    ///
    /// What the kernel refused, and [`Error::CaptureFile`].
    pub(super) fn gather(site: &Site<'_>) -> Result<Self> {
        let prefix = format!("datapath-{}-", site.fabric.name());
        let directory = Directory::default();
        let (slot, undone) = (directory.clone(), directory.clone());
        let (path, teardown) = guarded(|| slot.make(&prefix), move || undone.remove())?;
        let mut this = Self {
            path,
            captures: Vec::new(),
            directory,
            _teardown: teardown,
        };
        let nodes = site.nodes.iter().map(|node| &node.host);
        let pods = site.pods.iter().map(|pod| &pod.host);
        for host in nodes.chain(pods).chain([&site.outside]) {
            this.captures.push(capture(host, &this.path)?);
        }
        Ok(this)
    }

    /// Where the files are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the captures and keeps their files.
    ///
    /// # Errors
    ///
    /// What the captures failed with; the files are kept all the same.
    pub(super) fn keep(mut self) -> Result<()> {
        self.directory.keep();
        let ended = self.captures.drain(..).map(Capture::stop);
        Error::collect(ended.filter_map(Result::err).collect())
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        // The files are closed before their directory goes.
        self.captures.clear();
        if std::thread::panicking() {
            self.directory.keep();
            tracing::error!(directory = %self.path.display(), "captures kept");
        }
    }
}

impl Directory {
    fn make(&self, prefix: &str) -> Result<PathBuf> {
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(Error::os("make a directory", "for captures"))?;
        let path = directory.path().to_owned();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(directory);
        Ok(path)
    }

    fn keep(&self) {
        self.take().map(TempDir::keep);
    }

    fn remove(&self) -> Result<()> {
        let removed = self.take().map_or(Ok(()), TempDir::close);
        removed.map_err(Error::os("remove", "the directory of captures"))
    }

    fn take(&self) -> Option<TempDir> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn capture(host: &Host<'_>, directory: &Path) -> Result<Capture> {
    let path = directory.join(format!("{}.pcapng", host.name));
    let comment = format!(
        "the interface of {} while the paths were checked",
        host.name
    );
    let interfaces = [host.interface.as_str()];
    Capture::start_cut(host.namespace, &interfaces, &path, &comment, FRAME_BYTES)
}

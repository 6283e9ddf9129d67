//! What crossed the lab's interfaces while it was checked, kept where something failed.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::site::{Host, Site};
use crate::{
    capture::Capture,
    error::{Error, Result},
};

/// Bytes kept of each frame: all headers, also of a tunnel, and a marker behind them.
const FRAME_BYTES: usize = 256;

/// Captures at work, in a directory of their own. Without [`Evidence::keep`] nothing is left of
/// them, unless a panic is under way.
///
/// Each host has a socket that sees every frame and a thread that writes their first bytes: some
/// percent of what the checks take.
#[derive(Debug)]
pub(super) struct Evidence {
    /// None once it is kept.
    directory: Option<TempDir>,
    captures: Vec<Capture>,
}

impl Evidence {
    /// Begins to capture the uplinks of all nodes, and the interfaces of all pods and of the host
    /// outside.
    ///
    /// # Errors
    ///
    /// What the kernel refused, and [`Error::CaptureFile`].
    pub(super) fn gather(site: &Site<'_>) -> Result<Self> {
        let prefix = format!("datapath-{}-", site.fabric.name());
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir()
            .map_err(Error::os("make a directory", "for captures"))?;
        let nodes = site.nodes.iter().map(|node| &node.host);
        let pods = site.pods.iter().map(|pod| &pod.host);
        let hosts = nodes.chain(pods).chain([&site.outside]);
        let captures = hosts.map(|host| capture(host, directory.path()));
        Ok(Self {
            captures: captures.collect::<Result<_>>()?,
            directory: Some(directory),
        })
    }

    /// Where the files are.
    pub(super) fn path(&self) -> Option<&Path> {
        self.directory.as_ref().map(TempDir::path)
    }

    /// Ends the captures and keeps their files; returns where they are.
    ///
    /// # Errors
    ///
    /// What the captures failed with; the files are kept all the same.
    pub(super) fn keep(mut self) -> Result<Option<PathBuf>> {
        let kept = self.directory.take().map(TempDir::keep);
        let ended = self.captures.drain(..).map(Capture::stop);
        Error::collect(ended.filter_map(Result::err).collect())?;
        Ok(kept)
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        // The files are closed before their directory goes.
        self.captures.clear();
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            tracing::error!(directory = %directory.keep().display(), "captures kept");
        }
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

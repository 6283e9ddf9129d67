//! Keeps what crosses interfaces as a pcapng file
//! (draft-ietf-opsawg-pcapng), to be read with `tshark -r` or Wireshark.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    frame::{Frame, FrameSocket},
    netns::Namespace,
    pcapng::{Packet, PcapError, PcapNg},
};
use datapath_tunnel::netlink::{Link, Netlink};

/// How often a capture without frames looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(20);

/// A capture at work. Dropping it ends it and keeps the file.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Captured>>>,
}

/// A capture that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The file.
    pub path: PathBuf,
    /// How many frames it holds.
    pub frames: u64,
    /// How many are missing because they came too fast.
    pub lost: u32,
}

impl Capture {
    /// Captures the named interfaces of a namespace, or, if none is named, all, also those that
    /// come later. When this returns, no frame is missed any more.
    ///
    /// `path` is overwritten. `comment` goes into the head of the file.
    ///
    /// # Errors
    ///
    /// [`Error::NoInterface`], [`Error::CaptureFile`], or [`Error::Os`] with what the kernel
    /// refused.
    pub fn start(
        namespace: &Namespace,
        interfaces: &[&str],
        path: &Path,
        comment: &str,
    ) -> Result<Self> {
        Self::start_cut(namespace, interfaces, path, comment, usize::MAX)
    }

    /// Begins a capture that keeps the first `frame_bytes` of each frame, and its length.
    ///
    /// # Errors
    ///
    /// As [`Capture::start`].
    pub fn start_cut(
        namespace: &Namespace,
        interfaces: &[&str],
        path: &Path,
        comment: &str,
        frame_bytes: usize,
    ) -> Result<Self> {
        let netlink = namespace.netlink()?;
        let named = interfaces
            .iter()
            .map(|interface| namespace.link_of(&netlink, interface))
            .collect::<Result<Vec<_>>>()?;
        let only = match named.as_slice() {
            [only] => Some(only.index),
            _ => None,
        };
        let socket = FrameSocket::open(namespace, only)?.cut(frame_bytes);
        let file = CaptureFile::create(path, comment, namespace.name(), netlink, &named)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || file.fill(socket, &stopped))
            .map_err(Error::os(
                "start a thread for a capture in",
                namespace.name(),
            ))?;
        Ok(Self {
            path: path.to_owned(),
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the capture, with everything in it that crossed before.
    ///
    /// # Errors
    ///
    /// [`Error::CaptureFile`], or [`Error::Os`] when frames could not be received.
    pub fn stop(mut self) -> Result<Captured> {
        self.finish().unwrap_or_else(|| {
            Ok(Captured {
                path: self.path.clone(),
                frames: 0,
                lost: 0,
            })
        })
    }

    /// Ends the capture and deletes the file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot be deleted.
    pub fn discard(mut self) -> Result<()> {
        // Whether it was complete does not matter any more.
        let _ = self.finish();
        fs::remove_file(&self.path).map_err(Error::os("delete", self.path.display()))
    }

    fn finish(&mut self) -> Option<Result<Captured>> {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.take()?.join();
        Some(outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Nothing is resumed here: this may run while another panic unwinds.
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(_))) => {}
            Some(Ok(Err(error))) => tracing::error!(error = error.chain(), "capture"),
            Some(Err(_)) => tracing::error!("the thread of a capture has panicked"),
        }
    }
}

/// A pcapng file being written.
struct CaptureFile {
    path: PathBuf,
    writer: PcapNg<BufWriter<File>>,
    netlink: Netlink,
    namespace: String,
    /// The interfaces that the file describes so far, by their number in the namespace; the
    /// position is their number in the file.
    described: Vec<u32>,
    /// Whether frames of other interfaces are left out.
    closed: bool,
    frames: u64,
}

impl CaptureFile {
    fn create(
        path: &Path,
        comment: &str,
        namespace: &str,
        netlink: Netlink,
        links: &[Link],
    ) -> Result<Self> {
        let refused = |source| Error::CaptureFile {
            path: path.to_owned(),
            source,
        };
        let file = File::create(path).map_err(|error| refused(PcapError::IoError(error)))?;
        let writer = PcapNg::new(BufWriter::new(file), comment);
        let mut this = Self {
            path: path.to_owned(),
            writer: writer.map_err(refused)?,
            netlink,
            namespace: namespace.to_owned(),
            described: Vec::new(),
            closed: !links.is_empty(),
            frames: 0,
        };
        for link in links {
            this.describe(link.index, &link.name).map_err(refused)?;
        }
        Ok(this)
    }

    fn fill(mut self, mut socket: FrameSocket, stopped: &AtomicBool) -> Result<Captured> {
        loop {
            // Looked at before the queue is: what is in it then, still goes in.
            let last = stopped.load(Ordering::Relaxed);
            let deadline = Instant::now() + if last { Duration::ZERO } else { PAUSE };
            let next = socket.next(deadline);
            let next = next.map_err(Error::os("receive frames in", &self.namespace))?;
            let written = match &next {
                Some(frame) => self.add(frame),
                None => self.writer.flush(),
            };
            written.map_err(|source| Error::CaptureFile {
                path: self.path.clone(),
                source,
            })?;
            if last && next.is_none() {
                break;
            }
        }
        Ok(Captured {
            path: self.path,
            frames: self.frames,
            lost: socket.lost(),
        })
    }

    fn add(&mut self, frame: &Frame) -> Result<(), PcapError> {
        let known = self
            .described
            .iter()
            .position(|&index| index == frame.interface);
        let id = match known {
            Some(id) => id,
            None if self.closed => return Ok(()),
            None => {
                let link = self.netlink.link_by_index(frame.interface).ok().flatten();
                let name = link.map_or_else(|| format!("if{}", frame.interface), |link| link.name);
                self.describe(frame.interface, &name)?
            }
        };
        self.writer.add(&Packet {
            interface: u32::try_from(id).unwrap_or(u32::MAX),
            time: frame.timestamp,
            bytes: &frame.bytes,
            original_len: frame.original_len,
            direction: Some(frame.direction),
            comment: None,
        })?;
        self.frames += 1;
        Ok(())
    }

    /// Adds an interface to the file; returns its number there.
    fn describe(&mut self, index: u32, name: &str) -> Result<usize, PcapError> {
        let named = format!("{name} in {}", self.namespace);
        self.writer.describe(name, &named)?;
        self.described.push(index);
        Ok(self.described.len() - 1)
    }
}

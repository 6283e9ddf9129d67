//! Events in a pcapng file.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use datapath_conformance::pcapng::{Packet, PcapError, PcapNg};

use crate::{
    api::{EventKind, EventView, Item},
    error::{Error, Result},
};

/// A file being written: the first bytes of every packet, with what became of it as comment.
pub(super) struct Recording {
    name: String,
    file: PcapNg<Box<dyn Write>>,
    /// Numbers of the interfaces in the file.
    interfaces: HashMap<String, u32>,
    packets: u64,
}

impl Recording {
    /// Overwrites a file.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(Error::os("write", &name))?;
        Self::new(&name, Box::new(BufWriter::new(file)))
    }

    /// Begins a file and writes its head at once, for who reads it as it grows.
    pub(super) fn new(name: &str, out: Box<dyn Write>) -> anyhow::Result<Self> {
        let begin = || {
            let mut file = PcapNg::new(out, "packets that the datapath told of")?;
            file.flush()?;
            Ok::<_, PcapError>(file)
        };
        Ok(Self {
            name: name.to_owned(),
            file: begin().with_context(|| format!("write {name}"))?,
            interfaces: HashMap::new(),
            packets: 0,
        })
    }

    /// Adds a packet; what says that events are missing has no place in the file.
    pub(super) fn add(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Event(event) => self.write(event).map_err(into_io),
            Item::Untold(_) => Ok(()),
        }
    }

    /// Writes out what is left; returns the number of packets.
    pub(super) fn finish(mut self) -> Result<u64> {
        let flushed = self.file.flush().map_err(into_io);
        flushed.map_err(Error::os("write", &self.name))?;
        Ok(self.packets)
    }

    fn write(&mut self, event: &EventView) -> Result<(), PcapError> {
        let known = self.interfaces.get(&event.interface).copied();
        let interface = if let Some(number) = known {
            number
        } else {
            let number = self.file.describe(&event.interface, &event.hook)?;
            self.interfaces.insert(event.interface.clone(), number);
            number
        };
        let since_epoch = event.time.duration_since(jiff::Timestamp::UNIX_EPOCH);
        self.file.add(&Packet {
            interface,
            time: Duration::try_from(since_epoch).unwrap_or_default(),
            bytes: &event.frame,
            original_len: usize::try_from(event.length_bytes).unwrap_or(usize::MAX),
            direction: None,
            comment: Some(&comment(event)),
        })?;
        self.packets += 1;
        // Events are few, and whoever watches the file wants to see them.
        self.file.flush()
    }
}

/// The drop reason, or what policy said.
fn comment(event: &EventView) -> Cow<'_, str> {
    match event.kind {
        EventKind::Drop => Cow::Borrowed(&event.reason),
        EventKind::PolicyVerdict => {
            let (kind, verdict) = (event.kind.as_str(), event.verdict.as_str());
            Cow::Owned(format!("{kind} {} {verdict}", event.direction))
        }
    }
}

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

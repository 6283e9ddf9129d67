//! The programs: loaded once, attached by pinned tcx and netkit links, which outlive the process, or
//! as filters where there is no tcx.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use datapath_kern::abi::config::Config as Settings;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::bpffs::{Pins, names};
use crate::clsact;
use crate::config::Config;
use crate::error::Error;
use crate::events::RING;
use crate::flows::Which;
use crate::journal::Journal;
use crate::maps::PINNED;
use crate::naming::digest;
use crate::netkit;
use crate::object::{PROGRAMS, RESIZING, SETTINGS};
use crate::sizes::Sizes;

/// Lines of a verifier log that are shown: its end has the reason.
const LOG_LINES: usize = 15;

/// Programs and their links.
pub(crate) struct Programs {
    /// Empty until they are loaded.
    source: Source,
    object: Cow<'static, [u8]>,
    directory: PathBuf,
    /// By program and interface.
    links: BTreeMap<(&'static str, String), Pinned>,
    /// Whether they are attached by tcx links; else as filters.
    tcx: bool,
    changes: LinkChanges,
}

/// Where the programs are.
enum Source {
    /// Verified by this process.
    Loaded(Ebpf),
    /// Verified by an earlier one, and pinned; none to begin with.
    Pinned(BTreeMap<&'static str, SchedClassifier>),
}

/// What was done to links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkChanges {
    pub(crate) replaced: usize,
    pub(crate) attached: usize,
    pub(crate) removed: usize,
}

/// The flow tables of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    pub(crate) sizes: Sizes,
    /// Bits of [`resizing`](datapath_kern::abi::flow::resizing): the flow tables that are filled
    /// from former ones.
    pub(crate) resizing: u32,
}

/// Where at an interface a program is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// What comes in, or what goes out.
    Tc(TcAttachType),
    /// What the far end of a netkit pair sends, whose near end the interface is.
    NetkitPeer,
}

impl From<TcAttachType> for Place {
    fn from(side: TcAttachType) -> Self {
        Self::Tc(side)
    }
}

/// A program on an interface, on record by a pin.
struct Pinned {
    path: PathBuf,
    /// Held open: a link whose pin goes last is detached some time later, one whose last descriptor
    /// is closed is detached when that returns (`bpf_link_put`, kernel/bpf/syscall.c). None for a
    /// filter.
    _link: Option<FdLink>,
}

impl Pinned {
    fn unpin(self) -> Result<(), Error> {
        unpin(&self.path)
    }
}

/// Removes a pin, and detaches what it says is attached.
fn unpin(path: &Path) -> Result<(), Error> {
    if clsact::is_pin(path) {
        return clsact::detach(path).map_err(|source| Error::Detach {
            path: path.to_owned(),
            source,
        });
    }
    fs::remove_file(path).map_err(Error::file("unpin", path))
}

impl Programs {
    /// None yet; of this object, once they are loaded.
    pub(crate) fn new(pins: &Pins, tcx: bool, object: Cow<'static, [u8]>) -> Self {
        Self {
            source: Source::Pinned(BTreeMap::new()),
            object,
            directory: pins.links(),
            links: BTreeMap::new(),
            tcx,
            changes: LinkChanges::default(),
        }
    }

    /// Loads the object with these settings, with the maps that are pinned already, and pins the programs and
    /// the other maps; programs that an earlier process made of the same are taken as
    /// they are, without the second that the verifier takes.
    ///
    /// # Errors
    ///
    /// [`Error::Load`], [`Error::Program`] with the end of the verifier's log.
    pub(crate) fn load(
        &mut self,
        config: &Config,
        tables: Tables,
        settings: &Settings,
        pins: &Pins,
        journal: &mut Journal,
    ) -> Result<(), Error> {
        let object = digest(&self.object);
        let wanted = digest(format!("{object:x} {settings:?} {tables:?}"));
        if journal.state().programs == wanted
            && let Some(programs) = pinned(&pins.programs())
        {
            self.source = Source::Pinned(programs);
            return Ok(());
        }
        // Not again before all of them are there.
        journal.change(|state| state.programs = 0)?;
        self.verify(config, tables, settings, pins)?;
        journal.change(|state| state.programs = wanted)
    }

    /// Has the kernel verify the programs, and pins them.
    fn verify(
        &mut self,
        config: &Config,
        tables: Tables,
        settings: &Settings,
        pins: &Pins,
    ) -> Result<(), Error> {
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global(SETTINGS, settings, true)
            .map_max_entries("flows", tables.sizes.max_flows)
            .map_max_entries("pending", tables.sizes.max_pending)
            .map_max_entries("fragments", config.max_fragments)
            .map_max_entries("fragment_ids", config.max_fragments)
            .map_max_entries(RING, config.event_ring_bytes);
        for name in PINNED {
            loader.map_pin_path(name, pins.maps().join(name));
        }
        if tables.resizing != 0 {
            loader.override_global(RESIZING, &tables.resizing, true);
        }
        for which in [Which::FormerFlows, Which::FormerPending] {
            let pin = pins.maps().join(which.map());
            if tables.resizing != 0 && pin.exists() {
                loader.map_pin_path(which.map(), pin);
            }
        }
        let mut ebpf = loader
            .load(&self.object)
            .map_err(|source| Error::Load(Box::new(source)))?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?;
        }
        load_all(&mut ebpf)?;
        pins.prepare()?;
        for name in PROGRAMS {
            let path = pins.programs().join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(Error::file("unpin", &path))?;
            }
            let pin = program(&mut ebpf, name)?.pin(&path);
            pin.map_err(|error| Error::file("pin program at", path)(io::Error::other(error)))?;
        }
        self.source = Source::Loaded(ebpf);
        Ok(())
    }

    /// Attaches a program to an interface of the calling thread's network namespace: where an
    /// earlier process did so, in the place of that one's program, without a moment between.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`].
    pub(crate) fn attach(
        &mut self,
        name: &'static str,
        interface: &str,
        place: impl Into<Place>,
    ) -> Result<(), Error> {
        let failed = |source: BoxedError| Error::Attach {
            program: name,
            interface: interface.to_owned(),
            source,
        };
        let index = if_nametoindex(interface).map_err(|errno| failed(errno.into()))?;
        // Numbers are not used again while a namespace lives, names are.
        let path = self.directory.join(format!("{name}-{index}"));
        let place = place.into();
        if matches!(place, Place::Tc(_)) && path.exists() && clsact::is_pin(&path) == self.tcx {
            // The setting that says how was changed.
            unpin(&path)?;
            self.changes.removed += 1;
        }
        let program = match &mut self.source {
            Source::Loaded(ebpf) => program(ebpf, name)?,
            Source::Pinned(programs) => programs.get_mut(name).ok_or_else(|| missing(name))?,
        };
        let (replaced, link) = match place {
            Place::NetkitPeer => {
                netkit::attach(program, index, &path).map(|(replaced, link)| (replaced, Some(link)))
            }
            Place::Tc(side) if !self.tcx => {
                clsact::attach(program, side, &path).map(|replaced| (replaced, None))
            }
            Place::Tc(side) => attach_tcx(program, interface, side, &path)
                .map(|(replaced, link)| (replaced, Some(link))),
        }
        .map_err(failed)?;
        if replaced {
            self.changes.replaced += 1;
        } else {
            self.changes.attached += 1;
        }
        let key = (name, interface.to_owned());
        self.links.insert(key, Pinned { path, _link: link });
        Ok(())
    }

    /// Detaches a program from an interface; one that is not attached is fine.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the pin cannot be removed, [`Error::Detach`].
    pub(crate) fn detach(&mut self, name: &'static str, interface: &str) -> Result<(), Error> {
        match self.links.remove(&(name, interface.to_owned())) {
            Some(link) => link.unpin(),
            None => Ok(()),
        }
    }

    /// Removes the links of an earlier process that nothing was attached by since.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::Detach`].
    pub(crate) fn detach_others(&mut self) -> Result<(), Error> {
        for name in names(&self.directory)? {
            let path = self.directory.join(name);
            if !self.links.values().any(|link| link.path == path) {
                unpin(&path)?;
                // What says that a `clsact` is ours stays with it.
                if !path.exists() {
                    self.changes.removed += 1;
                }
            }
        }
        Ok(())
    }

    /// Detaches everything.
    pub(crate) fn detach_all(&mut self) -> Vec<Error> {
        let links = std::mem::take(&mut self.links);
        links
            .into_values()
            .filter_map(|link| link.unpin().err())
            .collect()
    }

    /// What was done to links so far.
    pub(crate) fn changes(&self) -> LinkChanges {
        self.changes
    }
}

/// Has the kernel verify all programs at once: it takes most of the time that opening takes, and
/// one processor for each.
fn load_all(ebpf: &mut Ebpf) -> Result<(), Error> {
    thread::scope(|scope| {
        let mut loads = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            let Some(name) = PROGRAMS.into_iter().find(|known| *known == name) else {
                continue;
            };
            let load = move || {
                let program: &mut SchedClassifier =
                    program.try_into().map_err(|error| refused(name, error))?;
                program.load().map_err(|source| refused(name, source))
            };
            let load = thread::Builder::new()
                .name("dp-load".into())
                .spawn_scoped(scope, load)
                .map_err(Error::file("start a thread for", name))?;
            loads.push(load);
        }
        let join = |load: thread::ScopedJoinHandle<'_, _>| {
            load.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All of them, and then the first failure.
        let outcomes: Vec<_> = loads.into_iter().map(join).collect();
        outcomes.into_iter().collect()
    })
}

/// The programs that are pinned in `directory`; `None` unless all of them are.
fn pinned(directory: &Path) -> Option<BTreeMap<&'static str, SchedClassifier>> {
    let open = |name| {
        let program = SchedClassifier::from_pin(directory.join(name)).ok()?;
        Some((name, program))
    };
    PROGRAMS.into_iter().map(open).collect()
}

/// What attaching fails with.
pub(crate) type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Attaches a program by a pinned tcx link: by the one that is there, else by a new one. Says
/// whether there was one.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    path: &Path,
) -> Result<(bool, FdLink), BoxedError> {
    match replace(program, path)? {
        Some(link) => Ok((true, link)),
        None => Ok((false, attach_new(program, interface, side, path)?)),
    }
}

/// Puts a program in the place of the one that a pinned link has; `None` where there is no link,
/// or its interface is gone: such a pin is removed.
fn replace(program: &mut SchedClassifier, path: &Path) -> Result<Option<FdLink>, BoxedError> {
    if !path.exists() {
        return Ok(None);
    }
    let old: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(path)?).try_into()?;
    match program.attach_to_link(old) {
        Ok(id) => Ok(Some(program.take_link(id)?.try_into()?)),
        // `tcx_link_update`, kernel/bpf/tcx.c.
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(Errno::ENOLINK as i32) =>
        {
            fs::remove_file(path)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn attach_new(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    path: &Path,
) -> Result<FdLink, BoxedError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, side, options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    Ok(link.pin(path)?.into())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::Object {
        what: format!("program {name}"),
    }
}

/// A program that the verifier refused, with the end of what it said.
fn refused(program: &'static str, source: ProgramError) -> Error {
    let log = match &source {
        ProgramError::LoadError { verifier_log, .. } => {
            let text = verifier_log.to_string();
            let lines: Vec<_> = text.lines().collect();
            let start = lines.len().saturating_sub(LOG_LINES);
            lines.get(start..).unwrap_or_default().join("\n")
        }
        _ => String::new(),
    };
    Error::Program {
        program,
        log,
        source: Box::new(source),
    }
}

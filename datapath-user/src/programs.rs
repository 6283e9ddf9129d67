//! The programs: loaded once, attached by pinned tcx links.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use datapath_kern::abi::config::Config as Settings;

use crate::config::Config;
use crate::error::Error;
use crate::object::{OBJECT, PROGRAMS};

/// Lines of a verifier log that are shown: its end has the reason.
const LOG_LINES: usize = 15;

/// Loaded programs and their links.
pub(crate) struct Programs {
    ebpf: Ebpf,
    directory: PathBuf,
    links: BTreeMap<String, PinnedLink>,
}

impl Programs {
    /// Loads the object with these settings; links will be pinned in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Load`], [`Error::Program`] with the end of the verifier's log.
    pub(crate) fn load(
        config: &Config,
        settings: &Settings,
        directory: PathBuf,
    ) -> Result<Self, Error> {
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("CONFIG", settings, true)
            .map_max_entries("flows", config.max_flows)
            .map_max_entries("pending", config.max_pending)
            .load(OBJECT)
            .map_err(|source| Error::Load(Box::new(source)))?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?
                .load()
                .map_err(|source| refused(name, source))?;
        }
        Ok(Self {
            ebpf,
            directory,
            links: BTreeMap::new(),
        })
    }

    /// The object, to take its maps out of.
    pub(crate) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches a program to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`].
    pub(crate) fn attach(
        &mut self,
        name: &'static str,
        interface: &str,
        side: TcAttachType,
    ) -> Result<(), Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
            program: name,
            interface: interface.to_owned(),
            source,
        };
        let program = program(&mut self.ebpf, name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, side, options)
            .map_err(|error| failed(error.into()))?;
        let link: SchedClassifierLink = program
            .take_link(id)
            .map_err(|error| failed(error.into()))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: aya::programs::links::LinkError| failed(error.into()))?;
        // Names on a BPF file system have no dots.
        let key = pin_name(name, interface);
        let pinned = link
            .pin(self.directory.join(&key))
            .map_err(|error| failed(error.into()))?;
        self.links.insert(key, pinned);
        Ok(())
    }

    /// Detaches a program from an interface; one that is not attached is fine.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the pin cannot be removed.
    pub(crate) fn detach(&mut self, name: &str, interface: &str) -> Result<(), Error> {
        let key = pin_name(name, interface);
        let Some(link) = self.links.remove(&key) else {
            return Ok(());
        };
        let path = self.directory.join(key);
        link.unpin().map(drop).map_err(Error::file("unpin", path))
    }

    /// Detaches everything.
    pub(crate) fn detach_all(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        for (key, link) in std::mem::take(&mut self.links) {
            let path = self.directory.join(key);
            errors.extend(link.unpin().map_err(Error::file("unpin", path)).err());
        }
        errors
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let missing = || Error::Object {
        what: format!("program {name}"),
    };
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(missing)
}

fn pin_name(program: &str, interface: &str) -> String {
    format!("{program}-{}", interface.replace('.', "-"))
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

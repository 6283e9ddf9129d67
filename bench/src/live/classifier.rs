//! Classifiers of a few instructions, on interfaces.

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use datapath_conformance::netns::Namespace;

use super::assembly::{self as asm, Instruction, MapDefinition};
use crate::error::{Error, Result};

/// Which frames of an interface a program meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Those that arrive at it.
    Arriving,
    /// Those that are given to it, before they are queued.
    Leaving,
}

/// Attaches a program to what passes an interface one way, behind those that are there. It stays until
/// what is returned is dropped.
///
/// # Errors
///
/// [`Error::Assemble`], [`Error::Load`] and [`Error::Program`] for what the kernel refuses.
pub(super) fn attach(
    name: &'static str,
    code: &[Instruction],
    map: Option<MapDefinition>,
    namespace: &Namespace,
    interface: &str,
    way: Way,
) -> Result<Ebpf> {
    let way = match way {
        Way::Arriving => TcAttachType::Ingress,
        Way::Leaving => TcAttachType::Egress,
    };
    let file = asm::file("classifier", name, code, map).map_err(|source| Error::Assemble {
        program: name,
        source,
    })?;
    let mut ebpf = Ebpf::load(&file).map_err(|source| Error::Load {
        program: name,
        source: Box::new(source),
    })?;
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Incomplete {
            program: name,
            missing: "classifier",
        })?;
    program
        .load()
        .map_err(Error::program("verify", name, interface))?;
    namespace
        .run(|| program.attach(interface, way))?
        .map_err(Error::program("attach", name, interface))?;
    Ok(ebpf)
}

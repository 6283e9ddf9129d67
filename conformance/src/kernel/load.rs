//! Every program, loaded under every setting that the verifier sees another program by.

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use datapath_kern::abi::config::{Config as Settings, tunnel};
use datapath_user::{Kernel, OBJECT, PROGRAMS};

use super::Size;
use crate::error::{Error, Result};

/// The largest sizes of each program, with the helper flags that this kernel knows.
///
/// # Errors
///
/// [`Error::Program`] with the end of what the verifier says.
pub(super) fn programs(kernel: &Kernel) -> Result<Vec<Size>> {
    let mut sizes: Vec<Size> = PROGRAMS.map(Size::of).into();
    for tunnel in [tunnel::DIRECT, tunnel::NATIVE] {
        for identity_from_vni in [0, 1] {
            let settings = Settings {
                tunnel,
                identity_from_vni,
                checksum_v6_flags: kernel.checksum_v6_flags(),
                decap_flags: kernel.decap_flags.into(),
                host_interface: 1,
                ..Settings::DEFAULT
            };
            let mut ebpf = EbpfLoader::new()
                .override_global("CONFIG", &settings, true)
                .map_max_entries("flows", 1024)
                .map_max_entries("pending", 1024)
                .load(OBJECT)
                .map_err(refused("all"))?;
            for size in &mut sizes {
                load(&mut ebpf, size).map_err(refused(&size.program))?;
            }
        }
    }
    Ok(sizes)
}

fn load(ebpf: &mut Ebpf, size: &mut Size) -> std::result::Result<(), aya::EbpfError> {
    if let Some(program) = ebpf.program_mut(&size.program) {
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        let info = program.info()?;
        let instructions = info.size_translated().unwrap_or(0) / 8;
        let verified = info.verified_instruction_count().unwrap_or(0);
        size.instructions = size.instructions.max(instructions);
        size.verified = size.verified.max(verified);
    }
    Ok(())
}

fn refused(program: &str) -> impl FnOnce(aya::EbpfError) -> Error {
    let program = program.to_owned();
    |source| Error::Program {
        program,
        source: Box::new(source),
    }
}

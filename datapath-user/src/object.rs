//! The eBPF object: the one that belongs to this version of the library, or another one built from
//! it.

use std::borrow::Cow;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::Path;

use aya::include_bytes_aligned;
use datapath_kern::abi;
use datapath_kern::abi::config::Config as Settings;
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::error::Error;

/// Built from `datapath-kern` by the build script, and embedded: nothing is compiled at run time.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("DATAPATH_OBJECT_PATH"));

/// The programs in it, and where each one goes.
pub const PROGRAMS: [&str; 6] = [
    "from_pod",
    "to_pod",
    "from_uplink",
    "to_uplink",
    "from_host",
    "to_host",
];

/// Name of the object's settings, which begin with what they are and their version.
pub(crate) const SETTINGS: &str = "CONFIG";

/// Name of the object's word with the bits of [`resizing`](datapath_kern::abi::flow::resizing).
pub(crate) const RESIZING: &str = "RESIZING";

/// The object to load: that of a file, or the embedded one.
///
/// # Errors
///
/// [`Error::File`] for a file that cannot be read, [`Error::OtherObject`] for one that is no object
/// of this version.
pub(crate) fn read(path: Option<&Path>) -> Result<Cow<'static, [u8]>, Error> {
    let Some(path) = path else {
        return Ok(Cow::Borrowed(OBJECT));
    };
    let bytes = fs::read(path).map_err(Error::file("read the object", path))?;
    check(&bytes).map_err(|why| Error::OtherObject {
        path: path.to_path_buf(),
        why,
    })?;
    Ok(Cow::Owned(bytes))
}

/// Whether these are an object whose maps are laid out as this library reads and writes them; else
/// why not.
fn check(bytes: &[u8]) -> Result<(), String> {
    let object = File::parse(bytes).map_err(|error| format!("it is no ELF file: {error}"))?;
    if object.architecture() != object::Architecture::Bpf {
        return Err("it is no object for BPF".into());
    }
    let lacks = || format!("it has no {SETTINGS}, which every object of a datapath has");
    let symbol = object.symbol_by_name(SETTINGS).ok_or_else(lacks)?;
    let section = symbol.section_index().ok_or_else(lacks)?;
    let settings = object
        .section_by_index(section)
        .and_then(|section| section.data_range(symbol.address(), symbol.size()))
        .map_err(|error| format!("its {SETTINGS} cannot be read: {error}"))?
        .ok_or_else(lacks)?;
    let word = |offset: usize| {
        let bytes = settings.get(offset..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if word(offset_of!(Settings, magic)) != Some(abi::MAGIC) {
        return Err(format!("its {SETTINGS} is not a datapath's"));
    }
    match word(offset_of!(Settings, abi_version)) {
        Some(abi::VERSION) if settings.len() == size_of::<Settings>() => Ok(()),
        Some(abi::VERSION) => Err(format!(
            "its {SETTINGS} has {} bytes, not {}",
            settings.len(),
            size_of::<Settings>()
        )),
        found => Err(format!(
            "its ABI version is {}, this is version {}",
            found.unwrap_or_default(),
            abi::VERSION
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the settings are in the embedded object.
    fn settings() -> usize {
        let magic = abi::MAGIC.to_le_bytes();
        let version = abi::VERSION.to_le_bytes();
        let head = [magic, version].concat();
        let is_it = |window: &[u8]| window == head;
        let found: Vec<_> = OBJECT.windows(head.len()).enumerate().collect();
        let mut found = found.into_iter().filter(|(_, window)| is_it(window));
        let (place, _) = found.next().unwrap();
        assert!(found.next().is_none(), "one of them");
        place
    }

    #[test]
    fn the_own_object_is_one() {
        assert_eq!(check(OBJECT), Ok(()));
        assert!(matches!(read(None), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn what_is_none_is_refused_and_named() {
        let refused = |bytes: &[u8]| check(bytes).unwrap_err();
        assert!(refused(b"#!/bin/sh\n").contains("no ELF file"));
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(refused(&this).contains("no object for BPF"));
        let mut other = OBJECT.to_vec();
        other[settings() + offset_of!(Settings, abi_version)] ^= 0x40;
        let said = refused(&other);
        let wanted = format!("this is version {}", abi::VERSION);
        assert!(
            said.contains("ABI version") && said.contains(&wanted),
            "{said}"
        );
        let mut other = OBJECT.to_vec();
        other[settings()] ^= 1;
        assert!(refused(&other).contains("not a datapath's"));

        let missing = Path::new("/nonexistent/datapath.o");
        let error = read(Some(missing)).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/datapath.o"),
            "{error}"
        );
    }
}

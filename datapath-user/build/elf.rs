//! Tells a BPF object from another file.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// `e_machine` of a BPF object (`EM_BPF`, `include/uapi/linux/elf-em.h`).
const EM_BPF: u16 = 247;
/// `e_type` of a relocatable file, which is what a loader of BPF objects expects.
const ET_REL: u16 = 1;
/// As much of the ELF header as is looked at: `e_ident`, `e_type`, `e_machine`.
const HEADER_LEN: usize = 20;

/// Why a file is not a usable BPF object.
#[derive(Debug)]
pub(crate) enum NotBpf {
    /// It could not be read.
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// It is no 64-bit little-endian ELF file.
    NotElf { path: PathBuf },
    /// It is an ELF file for another machine, or an executable.
    OtherElf {
        path: PathBuf,
        machine: u16,
        kind: u16,
    },
}

impl fmt::Display for NotBpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => write!(f, "{}: {source}", path.display()),
            Self::NotElf { path } => {
                write!(f, "{}: not a 64-bit little-endian ELF file", path.display())
            }
            Self::OtherElf {
                path,
                machine,
                kind,
            } => write!(
                f,
                "{}: an ELF file, but no BPF object (machine {machine}, want {EM_BPF}; \
                 type {kind}, want {ET_REL})",
                path.display()
            ),
        }
    }
}

/// Checks that `path` is a relocatable ELF file for BPF.
///
/// # Errors
///
/// If it cannot be read or is something else.
pub(crate) fn check(path: &Path) -> Result<(), NotBpf> {
    let unreadable = |source| NotBpf::Unreadable {
        path: path.to_owned(),
        source,
    };
    let not_elf = || NotBpf::NotElf {
        path: path.to_owned(),
    };
    let mut header = [0; HEADER_LEN];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => {}
        Err(err) if err.kind() == ErrorKind::UnexpectedEof => return Err(not_elf()),
        Err(err) => return Err(unreadable(err)),
    }
    match header {
        // Magic, ELFCLASS64, ELFDATA2LSB, ten bytes of version, ABI and padding.
        [
            0x7f,
            b'E',
            b'L',
            b'F',
            2,
            1,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            kind_lo,
            kind_hi,
            machine_lo,
            machine_hi,
        ] => {
            let kind = u16::from_le_bytes([kind_lo, kind_hi]);
            let machine = u16::from_le_bytes([machine_lo, machine_hi]);
            if (kind, machine) == (ET_REL, EM_BPF) {
                return Ok(());
            }
            Err(NotBpf::OtherElf {
                path: path.to_owned(),
                machine,
                kind,
            })
        }
        _ => Err(not_elf()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(name: &str, bytes: &[u8]) -> Result<(), NotBpf> {
        let path = std::env::temp_dir().join(format!("xtask-elf-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let verdict = check(&path);
        std::fs::remove_file(&path).unwrap();
        verdict
    }

    fn header(kind: u8, machine: u8) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        header.extend([kind, 0, machine, 0]);
        header
    }

    #[test]
    fn a_bpf_object_passes() {
        verdict("bpf", &header(1, 247)).unwrap();
    }

    #[test]
    fn others_are_named_for_what_they_are() {
        let host = verdict("host", &header(3, 62)).unwrap_err();
        assert!(
            matches!(
                host,
                NotBpf::OtherElf {
                    machine: 62,
                    kind: 3,
                    ..
                }
            ),
            "{host}"
        );
        let text = verdict("text", b"int main(void) { return 0; }\n").unwrap_err();
        assert!(matches!(text, NotBpf::NotElf { .. }), "{text}");
        let empty = verdict("empty", b"").unwrap_err();
        assert!(matches!(empty, NotBpf::NotElf { .. }), "{empty}");
        let missing = check(Path::new("/nonexistent/datapath.o")).unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent/datapath.o"),
            "{missing}"
        );
    }
}

//! Finds what turns Rust into a BPF object: a compiler with a BPF `core`, and `bpf-linker`.
//!
//! Two compilers will do. A distribution's own rustc with a prebuilt `core` for
//! `bpfel-unknown-none` (Debian: `libstd-rust-web-dev-bpf`) comes first, because it is a stable
//! release and is installed in seconds. Else rustup's nightly with `rust-src`, which compiles
//! `core` itself. A release from rustup's stable channel brings neither.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::env;
use super::process::{capture, find_all};

/// The target that the object is compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Where a distribution puts its compiler. Not looked up in `PATH`: there, rustup comes first.
pub(crate) const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";
const NIGHTLY: &str = "nightly";
const LINKER: &str = "bpf-linker";

/// A compiler and a linker that fit each other.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// A compiler that has or can build `core` for [`TARGET`].
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) kind: Kind,
    pub(crate) version: RustcVersion,
}

/// How the compiler comes by its `core`.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Prebuilt, beside a distribution's compiler.
    Prebuilt { rustc: PathBuf, cargo: PathBuf },
    /// Built from `rust-src` by rustup's nightly.
    Nightly { rustup: PathBuf },
}

/// An installed `bpf-linker`.
#[derive(Debug)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// What `--version` prints, such as `bpf-linker 0.13.0`.
    pub(crate) version: String,
    /// Major version of the LLVM it loads; none if LLVM is linked in and so cannot be seen.
    pub(crate) llvm: Option<u32>,
}

/// What `rustc -vV` tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RustcVersion {
    /// Major and minor number of the release.
    pub(crate) release: (u32, u32),
    /// Major version of the LLVM it writes bitcode for.
    pub(crate) llvm: u32,
    /// The whole text.
    pub(crate) verbose: String,
}

/// Why there is no usable toolchain.
#[derive(Debug)]
pub(crate) enum Missing {
    /// Neither compiler is usable: why not, one line each.
    Compiler { system: String, nightly: String },
    /// No `bpf-linker` in `PATH` or in cargo's `bin`.
    Linker,
    /// It is there, but does not start.
    BrokenLinker { path: PathBuf, said: String },
    /// It cannot read what this compiler writes.
    OldLinker {
        path: PathBuf,
        llvm: u32,
        rustc_llvm: u32,
    },
}

impl Toolchain {
    /// Finds the toolchain of this machine.
    ///
    /// # Errors
    ///
    /// What is missing, and the command that mends it.
    pub(crate) fn find() -> Result<Self, Missing> {
        let compiler = Compiler::find()?;
        let linker = Linker::find(compiler.version.llvm)?;
        Ok(Self { compiler, linker })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.compiler, self.linker)
    }
}

impl Compiler {
    /// Finds the compiler.
    ///
    /// # Errors
    ///
    /// Why neither kind is usable.
    pub(crate) fn find() -> Result<Self, Missing> {
        let system = match Self::system() {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        let nightly = match Self::nightly() {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        Err(Missing::Compiler { system, nightly })
    }

    fn system() -> Result<Self, String> {
        let rustc = Path::new(SYSTEM_RUSTC);
        if !rustc.is_file() {
            return Err("not installed".to_owned());
        }
        let sysroot = capture(env::clean(&mut Command::new(rustc)).args(["--print", "sysroot"]))?;
        if !has_core(Path::new(sysroot.trim())) {
            return Err(format!(
                "installed, but without a core library for {TARGET}"
            ));
        }
        if !Path::new(SYSTEM_CARGO).is_file() {
            return Err(format!("installed, but without its cargo ({SYSTEM_CARGO})"));
        }
        let version = RustcVersion::of(&mut Command::new(rustc))?;
        if let Some(needed) = minor_release(std::env!("CARGO_PKG_RUST_VERSION"))
            && version.release < needed
        {
            let ((major, minor), (want_major, want_minor)) = (version.release, needed);
            return Err(format!(
                "Rust {major}.{minor}, but this workspace needs {want_major}.{want_minor}"
            ));
        }
        let kind = Kind::Prebuilt {
            rustc: rustc.to_owned(),
            cargo: PathBuf::from(SYSTEM_CARGO),
        };
        Ok(Self { kind, version })
    }

    fn nightly() -> Result<Self, String> {
        let rustup = find_all("rustup", &search_path())
            .into_iter()
            .next()
            .ok_or("rustup is not installed")?;
        let version = RustcVersion::of(&mut nightly(&rustup, "rustc"))?;
        let sysroot = capture(nightly(&rustup, "rustc").args(["--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if !source.is_file() {
            return Err("installed, but without its component rust-src".to_owned());
        }
        let kind = Kind::Nightly { rustup };
        Ok(Self { kind, version })
    }

    /// A `cargo build` with this compiler, without the surrounding cargo's environment.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut command = match &self.kind {
            Kind::Prebuilt { rustc, cargo } => {
                let mut command = Command::new(cargo);
                env::clean(&mut command);
                // aya-ebpf alone needs unstable features, so it alone is allowed them.
                command
                    .env("RUSTC_BOOTSTRAP", "aya_ebpf")
                    .env("RUSTC", rustc);
                command.arg("build");
                command
            }
            Kind::Nightly { rustup } => {
                let mut command = nightly(rustup, "cargo");
                command.args(["build", "-Zbuild-std=core"]);
                command
            }
        };
        // An empty wrapper also overrides one from a configuration file.
        command
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "");
        command
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version.release;
        let llvm = self.version.llvm;
        match &self.kind {
            Kind::Prebuilt { rustc, .. } => {
                write!(f, "{} {major}.{minor} (LLVM {llvm})", rustc.display())
            }
            Kind::Nightly { .. } => {
                write!(
                    f,
                    "rustup's nightly {major}.{minor} with rust-src (LLVM {llvm})"
                )
            }
        }
    }
}

impl Linker {
    /// Finds a linker that reads the bitcode of LLVM `rustc_llvm`.
    ///
    /// # Errors
    ///
    /// If there is none, or why the first one found will not do.
    pub(crate) fn find(rustc_llvm: u32) -> Result<Self, Missing> {
        let mut first_problem = None;
        for path in find_all(LINKER, &search_path()) {
            match Self::examine(&path, rustc_llvm) {
                Ok(linker) => return Ok(linker),
                Err(problem) => first_problem = first_problem.or(Some(problem)),
            }
        }
        Err(first_problem.unwrap_or(Missing::Linker))
    }

    fn examine(path: &Path, rustc_llvm: u32) -> Result<Self, Missing> {
        let version =
            capture(Command::new(path).arg("--version")).map_err(|said| Missing::BrokenLinker {
                path: path.to_owned(),
                said,
            })?;
        let libraries = capture(Command::new("ldd").arg(path)).unwrap_or_default();
        let llvm = loaded_llvm(&libraries);
        match llvm {
            // A newer LLVM reads older bitcode; the reverse does not hold.
            Some(llvm) if llvm < rustc_llvm => Err(Missing::OldLinker {
                path: path.to_owned(),
                llvm,
                rustc_llvm,
            }),
            _ => Ok(Self {
                path: path.to_owned(),
                version: version.trim().to_owned(),
                llvm,
            }),
        }
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        match self.llvm {
            Some(llvm) => write!(f, " (LLVM {llvm})"),
            None => write!(f, " (LLVM linked in)"),
        }
    }
}

impl RustcVersion {
    /// Asks `rustc` for its version.
    ///
    /// # Errors
    ///
    /// One line: it does not run, or its answer has an unknown form.
    pub(crate) fn of(rustc: &mut Command) -> Result<Self, String> {
        let verbose = capture(env::clean(rustc).arg("-vV"))?;
        Self::parse(&verbose).ok_or_else(|| format!("cannot read its version from {verbose:?}"))
    }

    /// Reads the output of `rustc -vV`.
    pub(crate) fn parse(verbose: &str) -> Option<Self> {
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name));
        let release = minor_release(field("release: ")?)?;
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self {
            release,
            llvm,
            verbose: verbose.trim().to_owned(),
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler { system, nightly } => write!(
                f,
                "no compiler for the eBPF object\n  \
                 {SYSTEM_RUSTC}: {system}\n  \
                 rustup's nightly: {nightly}"
            ),
            Self::Linker => write!(
                f,
                "no {LINKER}, which links the eBPF object, in PATH or in cargo's bin directory"
            ),
            Self::BrokenLinker { path, said } => {
                write!(f, "{} does not start\n  {said}", path.display())
            }
            Self::OldLinker {
                path,
                llvm,
                rustc_llvm,
            } => write!(
                f,
                "{} was built with LLVM {llvm} and cannot read what the compiler writes, \
                 bitcode of LLVM {rustc_llvm}",
                path.display()
            ),
        }
    }
}

/// `PATH`, and behind it cargo's `bin`, where `cargo install` puts the linker.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(env::cargo_home().map(|home| home.join("bin")));
    std::env::join_paths(dirs).unwrap_or(path)
}

fn nightly(rustup: &Path, program: &str) -> Command {
    let mut command = Command::new(rustup);
    env::clean(&mut command);
    // Looking must not download a toolchain.
    command
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["run", NIGHTLY, program]);
    command
}

fn has_core(sysroot: &Path) -> bool {
    let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    std::fs::read_dir(lib).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// `1.96` of `1.96.0`, of `1.97.0-nightly` and of `1.96`.
pub(crate) fn minor_release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The LLVM among the libraries that `ldd` lists: `libLLVM.so.22.1`, or before LLVM 18
/// `libLLVM-17.so.1`.
fn loaded_llvm(ldd: &str) -> Option<u32> {
    ldd.lines().find_map(|line| {
        let name = line.trim().strip_prefix("libLLVM")?;
        let version = name
            .strip_prefix(".so.")
            .or_else(|| name.strip_prefix('-'))?;
        let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)
binary: rustc
commit-hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96
commit-date: 2026-05-25
host: x86_64-unknown-linux-gnu
release: 1.96.0
LLVM version: 22.1.8
";

    #[test]
    fn rustc_versions_are_read() {
        let version = RustcVersion::parse(DEBIAN).unwrap();
        assert_eq!((version.release, version.llvm), ((1, 96), 22));
        let nightly = "release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(RustcVersion::parse(nightly).unwrap().release, (1, 97));
        assert_eq!(RustcVersion::parse("rustc 1.96.0\n"), None);
    }

    #[test]
    fn an_old_release_is_older() {
        assert_eq!(minor_release("1.95"), Some((1, 95)));
        assert!(minor_release("1.9.0") < minor_release("1.85.0"));
        assert_eq!(minor_release("stable"), None);
    }

    #[test]
    fn the_linkers_llvm_is_seen() {
        let ldd = "\tlinux-vdso.so.1 (0x00007fc70c0b8000)
\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007fc702e00000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fc702c1e000)\n";
        assert_eq!(loaded_llvm(ldd), Some(22));
        assert_eq!(loaded_llvm("\tlibLLVM-17.so.1 => not found\n"), Some(17));
        assert_eq!(loaded_llvm("\tlibLLVM.so.21 => not found\n"), Some(21));
        assert_eq!(loaded_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
        assert_eq!(loaded_llvm("\tnot a dynamic executable\n"), None);
    }
}

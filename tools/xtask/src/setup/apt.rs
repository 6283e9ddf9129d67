//! What apt offers. Names and versions are read from it, never assumed: they move with every
//! release of the distribution.

use std::collections::BTreeMap;
use std::process::Command;

use super::survey::TOOLS;
use crate::build::process::{capture, find_all};
use crate::build::toolchain::minor_release;

/// What bpf-linker's build needs beside LLVM: LLVM's own libraries use them.
pub(crate) const LINKER_LIBRARIES: &[&str] = &["zlib1g-dev", "libzstd-dev"];

/// The packages of one compiler that apt offers.
#[derive(Debug, PartialEq)]
pub(crate) struct CompilerPackages {
    /// All of them.
    pub(crate) packages: Vec<String>,
    /// Major and minor number of its release.
    pub(crate) release: (u32, u32),
    /// The library package, whose dependencies tell the version of LLVM.
    library: String,
}

/// Installed and candidate version of each package.
#[derive(Debug, Default)]
pub(crate) struct Policy(BTreeMap<String, Versions>);

#[derive(Debug, Default)]
struct Versions {
    installed: Option<String>,
    candidate: Option<String>,
}

/// A snapshot of apt's answers.
#[derive(Debug)]
pub(crate) struct Apt {
    pub(crate) policy: Policy,
    /// The compiler it offers, if that can build the object.
    pub(crate) compiler: Option<CompilerPackages>,
    /// LLVM of that compiler.
    pub(crate) compiler_llvm: Option<u32>,
}

impl Apt {
    /// Asks apt, if there is one.
    pub(crate) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        find_all("apt-get", &path).first()?;
        let policy = policy_of(&names_of_interest());
        let needed = minor_release(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default();
        let compiler = policy.compiler(needed);
        let compiler_llvm = compiler.as_ref().and_then(|compiler| {
            llvm_of(&apt_cache(&["depends", "--important", &compiler.library]))
        });
        Some(Self {
            policy,
            compiler,
            compiler_llvm,
        })
    }

    /// The packages that hold LLVM's headers and libraries, for building bpf-linker.
    pub(crate) fn llvm_packages(llvm: u32) -> Vec<String> {
        let libraries = LINKER_LIBRARIES.iter().map(ToString::to_string);
        [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]
            .into_iter()
            .chain(libraries)
            .collect()
    }

    /// Installed and candidate versions of `packages`.
    pub(crate) fn policy_of(packages: &[String]) -> Policy {
        policy_of(packages)
    }
}

impl Policy {
    /// Reads the output of `apt-cache policy NAME...`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut packages = BTreeMap::new();
        let mut current: Option<&mut Versions> = None;
        for line in text.lines() {
            if let Some(name) = line.strip_suffix(':')
                && !line.starts_with(' ')
            {
                current = Some(packages.entry(name.to_owned()).or_default());
            } else if let Some(versions) = current.as_deref_mut() {
                let version = |field: &str| {
                    let value = line.trim().strip_prefix(field)?.trim();
                    (value != "(none)").then(|| value.to_owned())
                };
                versions.installed = versions.installed.take().or_else(|| version("Installed:"));
                versions.candidate = versions.candidate.take().or_else(|| version("Candidate:"));
            }
        }
        Self(packages)
    }

    /// Whether apt knows no version of anything, as before the first `apt-get update`.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(|versions| versions.candidate.is_none())
    }

    /// The version of `package` that apt would install.
    pub(crate) fn candidate(&self, package: &str) -> Option<&str> {
        self.0.get(package)?.candidate.as_deref()
    }

    /// Whether `package` is installed.
    pub(crate) fn is_installed(&self, package: &str) -> bool {
        self.0.get(package).is_some_and(|v| v.installed.is_some())
    }

    /// The newest compiler that apt offers together with a BPF `core` of the same version, of
    /// at least the release `needed`.
    ///
    /// Debian has `rustc`, as released, and `rustc-web`, which follows what browsers need.
    pub(crate) fn compiler(&self, needed: (u32, u32)) -> Option<CompilerPackages> {
        ["", "-web"]
            .into_iter()
            .filter_map(|flavour| {
                let core = format!("libstd-rust{flavour}-dev-bpf");
                let rustc = format!("rustc{flavour}");
                let version = self.candidate(&rustc)?;
                if self.candidate(&core)? != version {
                    return None;
                }
                let release = minor_release(version).filter(|release| *release >= needed)?;
                let library = format!("libstd-rust{flavour}-{}.{}", release.0, release.1);
                Some(CompilerPackages {
                    packages: vec![
                        rustc,
                        format!("cargo{flavour}"),
                        format!("libstd-rust{flavour}-dev"),
                        library.clone(),
                        core,
                    ],
                    release,
                    library,
                })
            })
            .max_by_key(|compiler| compiler.release)
    }
}

/// The LLVM that a package depends on, from the output of `apt-cache depends`: `libllvm22`.
pub(crate) fn llvm_of(depends: &str) -> Option<u32> {
    depends.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: libllvm")?;
        let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

fn names_of_interest() -> Vec<String> {
    let compilers = [
        "rustc",
        "rustc-web",
        "libstd-rust-dev-bpf",
        "libstd-rust-web-dev-bpf",
    ];
    let tools = TOOLS.iter().map(|tool| tool.package);
    compilers
        .into_iter()
        .chain(tools)
        .map(str::to_owned)
        .collect()
}

fn policy_of(packages: &[String]) -> Policy {
    let names = packages.iter().map(String::as_str);
    let args: Vec<&str> = std::iter::once("policy").chain(names).collect();
    Policy::parse(&apt_cache(&args))
}

/// What `apt-cache` answers; nothing if it fails, as it does before the first `apt-get update`.
fn apt_cache(args: &[&str]) -> String {
    let mut command = Command::new("apt-cache");
    capture(command.args(args).env("LC_ALL", "C")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Debian 12 with its security archive; 13 lines of version tables are left out.
    const BOOKWORM: &str = "rustc:
  Installed: (none)
  Candidate: 1.63.0+dfsg1-2
  Version table:
     1.63.0+dfsg1-2 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
rustc-web:
  Installed: 1.85.0+dfsg3-1~deb12u3
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
 *** 1.85.0+dfsg3-1~deb12u3 100
        100 /var/lib/dpkg/status
libstd-rust-dev-bpf:
  Installed: (none)
  Candidate: (none)
  Version table:
libstd-rust-web-dev-bpf:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
tshark:
  Installed: 4.0.17-0+deb12u3
  Candidate: 4.0.17-0+deb12u3
";

    #[test]
    fn the_packages_of_debian_12_are_derived() {
        let compiler = Policy::parse(BOOKWORM).compiler((1, 95)).unwrap();
        assert_eq!(
            compiler.packages,
            [
                "rustc-web",
                "cargo-web",
                "libstd-rust-web-dev",
                "libstd-rust-web-1.96",
                "libstd-rust-web-dev-bpf"
            ]
        );
        assert_eq!(compiler.release, (1, 96));
    }

    #[test]
    fn the_plain_compiler_is_taken_where_it_is_newer() {
        let later = BOOKWORM
            .replace("Candidate: 1.63.0+dfsg1-2", "Candidate: 1.98.1+dfsg1-1")
            .replace("Candidate: (none)", "Candidate: 1.98.1+dfsg1-1");
        let compiler = Policy::parse(&later).compiler((1, 95)).unwrap();
        assert_eq!(
            compiler.packages,
            [
                "rustc",
                "cargo",
                "libstd-rust-dev",
                "libstd-rust-1.98",
                "libstd-rust-dev-bpf"
            ]
        );
    }

    #[test]
    fn a_compiler_too_old_or_without_bpf_is_not_offered() {
        let policy = Policy::parse(BOOKWORM);
        assert_eq!(policy.compiler((1, 97)), None);
        let no_core = BOOKWORM.replace("libstd-rust-web-dev-bpf", "libstd-rust-web-dev-wasm32");
        assert_eq!(Policy::parse(&no_core).compiler((1, 60)), None);
        let other_core =
            BOOKWORM.replacen("Candidate: 1.96.0+dfsg1-1~deb12u2", "Candidate: 1.85.0", 1);
        assert_eq!(Policy::parse(&other_core).compiler((1, 60)), None);
    }

    #[test]
    fn installed_and_unknown_packages_are_told_apart() {
        let policy = Policy::parse(BOOKWORM);
        assert!(policy.is_installed("tshark"));
        assert!(!policy.is_installed("rustc"));
        assert!(!policy.is_installed("no-such-package"));
        assert_eq!(policy.candidate("libstd-rust-dev-bpf"), None);
        assert_eq!(Policy::parse("").candidate("rustc"), None);
    }

    #[test]
    fn llvm_is_read_from_the_dependencies() {
        let depends = "libstd-rust-web-1.96
  Depends: libc6
  Depends: libgcc-s1
  Depends: libllvm22
";
        assert_eq!(llvm_of(depends), Some(22));
        assert_eq!(
            llvm_of("libstd-rust-1.98\n  Depends: libllvm23t64\n"),
            Some(23)
        );
        assert_eq!(llvm_of("libstd-rust-1.98\n  Depends: libc6\n"), None);
    }

    #[test]
    fn llvm_packages_carry_its_number() {
        assert_eq!(
            Apt::llvm_packages(22),
            [
                "llvm-22-dev",
                "libpolly-22-dev",
                "zlib1g-dev",
                "libzstd-dev"
            ]
        );
    }
}

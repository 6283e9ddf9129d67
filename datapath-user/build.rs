//! Builds the eBPF object and tells the crate where it is, as `DATAPATH_OBJECT_PATH`.
//!
//! `DATAPATH_OBJECT=/path/to/object` embeds a ready object instead: then no eBPF toolchain
//! is needed. `cargo xtask setup` installs one.

#[path = "build/mod.rs"]
mod build;

use std::env;
use std::path::{Path, PathBuf};

use build::ebpf::{self, Plan};
use build::toolchain::Kind;
use build::{elf, env::target_root};

/// Environment variable that names a ready object.
const READY_OBJECT: &str = "DATAPATH_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={READY_OBJECT}");
    let object = match env::var_os(READY_OBJECT) {
        Some(path) if !path.is_empty() => ready(PathBuf::from(path)),
        _ => compile(),
    };
    match object {
        Ok(path) => println!("cargo::rustc-env=DATAPATH_OBJECT_PATH={}", path.display()),
        // Cargo fails the build by these lines, and shows nothing else.
        Err(text) => text
            .lines()
            .for_each(|line| println!("cargo::error={line}")),
    }
}

fn ready(path: PathBuf) -> Result<PathBuf, String> {
    // The crate includes it relative to a source file, which nobody would guess.
    if !path.is_absolute() {
        return Err(format!(
            "{READY_OBJECT}={}: not an absolute path",
            path.display()
        ));
    }
    elf::check(&path).map_err(|err| {
        format!("{READY_OBJECT}: {err}\n  Unset it to build the object from source.")
    })?;
    rerun_if_changed(&path);
    Ok(path)
}

fn compile() -> Result<PathBuf, String> {
    let variable = |name: &str| env::var(name).map_err(|err| format!("{name}: {err}"));
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let workspace = manifest_dir.parent().unwrap_or(&manifest_dir);

    let plan = Plan {
        workspace,
        target_dir: target_root(&out_dir).unwrap_or(&out_dir).join("ebpf"),
        arch: &arch,
        embed: out_dir.join("datapath.o"),
    };
    let object = ebpf::build(&plan, &mut |_| {}).map_err(|err| err.to_string())?;

    for source in &object.sources {
        rerun_if_changed(source);
    }
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        "datapath-kern/Cargo.toml",
        "tunnel/Cargo.toml",
    ] {
        rerun_if_changed(&workspace.join(path));
    }
    for path in ["build.rs", "build"] {
        rerun_if_changed(&manifest_dir.join(path));
    }
    // A new compiler or linker means a new object.
    if let Kind::Prebuilt { rustc, .. } = &object.toolchain.compiler.kind {
        rerun_if_changed(rustc);
    }
    rerun_if_changed(&object.toolchain.linker.path);
    for line in object.warnings.lines() {
        println!("cargo::warning={line}");
    }
    if !object.stripped {
        println!("cargo::warning=no llvm-objcopy: the eBPF object is embedded with its debug info");
    }
    Ok(plan.embed)
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

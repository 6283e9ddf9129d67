//! What of the surrounding cargo's environment an inner cargo may see.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Families of variables that describe the user's machine rather than the outer build:
/// where crates come from, the proxy in front of it, offline or not, colours.
const KEPT: &[&str] = &[
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_TERM_",
];

/// Families of variables that the outer cargo, rustup or clippy set for *their* build.
const DROPPED: &[&str] = &[
    "CARGO",
    "CLIPPY_",
    "DEP_",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "__CARGO",
];

/// Variables of a build script, by their whole name.
const BUILD_SCRIPT: &[&str] = &[
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "TARGET",
];

/// Whether the variable `name` belongs to the outer build and would mislead an inner one.
///
/// `RUSTC_WORKSPACE_WRAPPER` is the one that hurts most: under `cargo clippy` it turns the
/// inner build into another clippy run, which emits no object.
pub(crate) fn belongs_to_outer_build(name: &str) -> bool {
    let starts = |families: &[&str]| families.iter().any(|family| name.starts_with(family));
    !starts(KEPT) && (starts(DROPPED) || BUILD_SCRIPT.contains(&name))
}

/// Makes `command` start as from a shell: without what the outer build put into the environment.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_build) {
            command.env_remove(name);
        }
    }
    command
}

/// Cargo's home directory: `$CARGO_HOME`, else `~/.cargo`.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
}

/// The target directory that `inside` lies in: the nearest ancestor that cargo marked as a
/// cache, or that one's parent if it is marked too, as with `--target`.
///
/// The depth of a build script's `OUT_DIR` differs with `--target` and with cargo's layout,
/// so it is not counted in directories.
pub(crate) fn target_root(inside: &Path) -> Option<&Path> {
    let marks = ["CACHEDIR.TAG", ".rustc_info.json"];
    let marked = |dir: &&Path| marks.iter().any(|mark| dir.join(mark).is_file());
    let nearest = inside.ancestors().find(marked)?;
    Some(nearest.parent().filter(marked).unwrap_or(nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_build_is_forgotten() {
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MAKEFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_BOOTSTRAP",
            "RUSTC_LINKER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
            "__CARGO_DEFAULT_LIB_METADATA",
        ] {
            assert!(belongs_to_outer_build(name), "{name} should be removed");
        }
    }

    #[test]
    fn the_machine_is_remembered() {
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_MIRROR_INDEX",
            "CARGO_TERM_COLOR",
            "HOME",
            "HTTPS_PROXY",
            "HOSTNAME",
            "PATH",
            "RUST_BACKTRACE",
            "RUSTUP_HOME",
            "TARGETS",
            "https_proxy",
        ] {
            assert!(!belongs_to_outer_build(name), "{name} should be kept");
        }
    }

    #[test]
    fn the_target_directory_is_found_at_any_depth() {
        let root = std::env::temp_dir().join(format!("xtask-env-{}", std::process::id()));
        let triple = root.join("x86_64-unknown-linux-gnu");
        let plain = root.join("debug/build/datapath-user-0123/out");
        let cross = triple.join("debug/build/datapath-user-0123/out");
        for out in [&plain, &cross] {
            std::fs::create_dir_all(out).unwrap();
        }
        for marked in [&root, &triple] {
            std::fs::write(marked.join("CACHEDIR.TAG"), "").unwrap();
        }
        let found = [&plain, &cross].map(|out| target_root(out).map(Path::to_path_buf));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [Some(root.clone()), Some(root)]);
    }
}

//! The initial file system of a guest: a shell, and the modules that lead to the host's files.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::package::Package;
use crate::build::process::capture;

/// What the first process does.
const INIT: &str = include_str!("init.sh");
/// What it does once it has the host's files.
const STAGE_TWO: &str = include_str!("stage_two.sh");
/// The modules without which there are no files, with all that they need.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes the image for a kernel at `path`, an uncompressed cpio archive.
///
/// # Errors
///
/// If a program that it takes is missing, or the kernel lacks a module.
pub(super) fn make(package: &Package, path: &Path) -> Result<PathBuf> {
    let tree = super::fresh(&path.with_extension("tree"))?;
    for directory in ["bin", "modules", "proc", "dev", "lower", "memory", "root"] {
        fs::create_dir(tree.join(directory)).context("make the tree of the guest's image")?;
    }
    copy(&busybox()?, &tree.join("bin/busybox"))?;
    write(&tree.join("init"), INIT.as_bytes())?;
    write(&tree.join("stage-two"), STAGE_TWO.as_bytes())?;
    for (number, module) in modules(package)?.iter().enumerate() {
        // Loaded in the order of their names.
        let name = module.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".ko");
        let to = tree.join(format!("modules/{number:03}-{name}.ko"));
        write(&to, &uncompressed(module)?)?;
    }
    archive(&tree, path)?;
    Ok(path.to_owned())
}

/// A busybox that needs no libraries.
fn busybox() -> Result<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = places.into_iter().find(|path| path.exists());
    found.context("there is no busybox: install the package busybox-static")
}

/// The files of the modules, each behind those that it needs.
fn modules(package: &Package) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = Command::new("modprobe");
        command
            .args(["--show-depends", "--set-version", &package.release])
            .arg("--dirname")
            .arg(&package.root)
            .arg(module);
        let text = capture(&mut command).map_err(|said| anyhow!("modprobe {module}: {said}"))?;
        for file in loaded(&text) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The files in lines such as `insmod /lib/modules/6.1/kernel/fs/9p/9p.ko `; modules that are
/// built in have none.
fn loaded(text: &str) -> impl Iterator<Item = PathBuf> {
    let files = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("insmod "));
    files.map(|file| PathBuf::from(file.trim()))
}

/// A module as the kernel takes it.
fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    let extension = module.extension().unwrap_or_default().to_string_lossy();
    let mut command = match &*extension {
        "ko" => {
            return fs::read(module).with_context(|| format!("read {}", module.display()));
        }
        "xz" => Command::new("xz"),
        "zst" => Command::new("zstd"),
        _ => bail!("{} is compressed in a way unknown here", module.display()),
    };
    let output = command
        .args(["--decompress", "--stdout"])
        .arg(module)
        .output()
        .with_context(|| format!("start the program that reads .{extension}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("decompress {}: {said}", module.display());
    }
    Ok(output.stdout)
}

/// Packs the tree.
fn archive(tree: &Path, to: &Path) -> Result<()> {
    let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --create --format=newc --quiet"])
        .current_dir(tree)
        .stdin(Stdio::null())
        .stdout(file)
        .status()
        .context("start sh")?;
    if !status.success() {
        bail!("cpio made no archive of {}: {status}", tree.display());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_are_built_in_have_no_file() {
        let text = "builtin virtio_pci\ninsmod /m/netfs.ko.xz \ninsmod /m/9pnet.ko.xz \n";
        let files: Vec<_> = loaded(text).collect();
        assert_eq!(
            files,
            ["/m/netfs.ko.xz", "/m/9pnet.ko.xz"].map(PathBuf::from)
        );
    }

    #[test]
    fn an_unknown_compression_is_named() {
        let error = uncompressed(Path::new("/m/9p.ko.lz9")).unwrap_err();
        assert!(error.to_string().contains("/m/9p.ko.lz9"), "{error}");
    }
}

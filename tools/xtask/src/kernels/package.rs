//! Kernels of the distribution: downloaded and unpacked once, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::build::process::capture;

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Package {
    /// Where it is unpacked.
    pub(super) root: PathBuf,
    /// As `uname -r` will say.
    pub(super) release: String,
    /// The image to boot.
    pub(super) kernel: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// The newest kernel of a branch, kept in `directory`. One that is there already is taken as it is:
/// to get a newer one, delete the directory.
///
/// # Errors
///
/// If apt offers none, or it cannot be downloaded or unpacked.
pub(super) fn get(directory: &Path, branch: &str) -> Result<Package> {
    let root = directory.join("root");
    if let Ok(package) = unpacked(&root) {
        println!("{} is in {}", package.release, root.display());
        return Ok(package);
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let pattern = format!("^linux-image-{}[.]", branch.replace('.', "[.]"));
    let mut search = Command::new("apt-cache");
    search.args(["search", "--names-only", &pattern]);
    let listed = said(&mut search)?;
    let Some(name) = newest(&listed, branch) else {
        bail!(
            "apt offers no linux-image-{branch}.*-amd64: add the distribution's backports, or run \
             apt-get update"
        );
    };
    println!("Downloading {name}");
    let mut download = Command::new("apt-get");
    // Its own user may not be allowed to write here.
    download
        .args(["download", "-oAPT::Sandbox::User=root", name])
        .current_dir(directory);
    said(&mut download)?;
    let archive = archive(directory, name)?;
    let partial = directory.join("partial");
    let mut unpack = Command::new("dpkg");
    said(unpack.arg("--extract").arg(&archive).arg(&partial))?;
    let package = unpacked(&partial)?;
    let mut index = Command::new("depmod");
    said(index.arg("--basedir").arg(&partial).arg(&package.release))?;
    fs::rename(&partial, &root).context("keep the unpacked kernel")?;
    fs::remove_file(archive).context("delete the downloaded package")?;
    unpacked(&root)
}

/// The kernel in a directory that a package was unpacked into.
fn unpacked(root: &Path) -> Result<Package> {
    let all = root.join("lib/modules");
    let mut entries = fs::read_dir(&all).with_context(|| format!("list {}", all.display()))?;
    let Some(Ok(entry)) = entries.next() else {
        bail!("{} is empty", all.display());
    };
    let release = entry.file_name().to_string_lossy().into_owned();
    let kernel = root.join(format!("boot/vmlinuz-{release}"));
    if !kernel.exists() {
        bail!("there is no {}", kernel.display());
    }
    Ok(Package {
        root: root.to_owned(),
        modules: entry.path(),
        kernel,
        release,
    })
}

/// The newest generic kernel of a branch among the lines of `apt-cache search`.
fn newest<'a>(listed: &'a str, branch: &str) -> Option<&'a str> {
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| {
            let version = name.strip_prefix("linux-image-").unwrap_or_default();
            let version = version.strip_suffix("-amd64").unwrap_or_default();
            let flavoured = ["cloud", "rt", "unsigned", "dbg", "bpo"]
                .iter()
                .any(|word| version.contains(word));
            version.starts_with(&format!("{branch}.")) && !flavoured
        })
        .max_by_key(|name| numbers(name))
}

/// The numbers in a name, to compare versions by.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The file that a package was downloaded to.
fn archive(directory: &Path, name: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).context("list what was downloaded")?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = paths.find(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
    });
    found.with_context(|| format!("apt-get download left no {name}_*.deb"))
}

fn said(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    capture(command.env("LC_ALL", "C")).map_err(|said| anyhow!("{program}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        let listed = "\
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-50-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-51-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-51-amd64-dbg - Debug symbols
linux-image-6.1.0-51-amd64-unsigned - Linux 6.1 for 64-bit PCs
linux-image-6.12.9+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.118+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs (signed), PREEMPT_RT
";
        assert_eq!(newest(listed, "6.1"), Some("linux-image-6.1.0-50-amd64"));
        let newer = Some("linux-image-6.12.117+deb12-amd64");
        assert_eq!(newest(listed, "6.12"), newer);
        assert_eq!(newest(listed, "6.6"), None);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let error = unpacked(Path::new("/no/such")).unwrap_err().to_string();
        assert!(error.contains("/no/such/lib/modules"), "{error}");
    }
}

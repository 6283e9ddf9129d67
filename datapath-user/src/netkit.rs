//! Programs at the pod's end of a netkit pair: links that the kernel has and aya does not.
//!
//! A link is made by the primary, the host's end, for its peer, the pod's (`netkit_link_attach`,
//! drivers/net/netkit.c). From then on aya knows it by its pin.

#![expect(
    unsafe_code,
    reason = "bpf(2) is called here for links that aya does not have"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::errno::Errno;
use nix::libc;

use crate::programs::BoxedError;

/// Attaches `program` to the pod's end of the netkit pair whose host's end has the number `index`,
/// and pins the link; an earlier link at `path` gets it instead. Says whether there was one.
///
/// # Errors
///
/// What the kernel says: `ENXIO` where the interface is no netkit, `EACCES` where it is not the
/// host's end.
pub(crate) fn attach(
    program: &SchedClassifier,
    index: u32,
    path: &Path,
) -> Result<(bool, FdLink), BoxedError> {
    let program = program.fd()?.as_fd();
    let replaced = path.exists() && replace(program, path)?;
    if !replaced {
        pin(create(program, index)?.as_fd(), path)?;
    }
    Ok((replaced, PinnedLink::from_pin(path)?.into()))
}

/// Puts a program in the place of the one that a pinned link has; false where its interface is
/// gone: such a pin is removed.
fn replace(program: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    match update(open(path)?.as_fd(), program) {
        Ok(()) => Ok(true),
        // `netkit_link_update`.
        Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => {
            fs::remove_file(path)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

// Of each command the first fields of its part of `union bpf_attr` (include/uapi/linux/bpf.h); the
// kernel takes those behind as zero.

/// `link_create`.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `link_update`.
#[repr(C)]
struct LinkUpdate {
    link_fd: RawFd,
    new_prog_fd: RawFd,
    flags: u32,
}

/// What `BPF_OBJ_PIN` and `BPF_OBJ_GET` take.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: RawFd,
    file_flags: u32,
}

fn create(program: BorrowedFd<'_>, index: u32) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd(),
        target_ifindex: index,
        attach_type: bpf_attach_type::BPF_NETKIT_PEER as u32,
        flags: 0,
    };
    bpf(bpf_cmd::BPF_LINK_CREATE, &attributes).map(owned)
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkUpdate {
        link_fd: link.as_raw_fd(),
        new_prog_fd: program.as_raw_fd(),
        flags: 0,
    };
    bpf(bpf_cmd::BPF_LINK_UPDATE, &attributes).map(drop)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    bpf(bpf_cmd::BPF_OBJ_GET, &attributes).map(owned)
}

fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: link.as_raw_fd(),
        file_flags: 0,
    };
    bpf(bpf_cmd::BPF_OBJ_PIN, &attributes).map(drop)
}

/// Takes over a descriptor that [`bpf`] returned.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with what the kernel has just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// bpf(2): returns a new descriptor, or 0 from commands that make none.
fn bpf<T>(command: bpf_cmd, attributes: &T) -> io::Result<RawFd> {
    let (command, from) = (command as libc::c_long, std::ptr::from_ref(attributes));
    // SAFETY: the structs above are laid out as the command's attributes, of which the kernel reads
    // as many bytes as it is told; paths in them live as long as the call. None is written to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, from, size_of::<T>()) };
    // A descriptor, or -1.
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    Errno::result(fd).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_the_kernel_reads_them() {
        use std::mem::offset_of;
        let create = (
            offset_of!(LinkCreate, target_ifindex),
            offset_of!(LinkCreate, attach_type),
            size_of::<LinkCreate>(),
        );
        assert_eq!(create, (4, 8, 16));
        let update = (offset_of!(LinkUpdate, new_prog_fd), size_of::<LinkUpdate>());
        assert_eq!(update, (4, 12));
        assert_eq!((offset_of!(Object, bpf_fd), size_of::<Object>()), (8, 16));
        assert_eq!(bpf_attach_type::BPF_NETKIT_PEER as u32, 55);
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let missing = open(Path::new("/nonexistent/link")).unwrap_err();
        assert!(
            matches!(
                missing.raw_os_error().map(Errno::from_raw),
                Some(Errno::ENOENT | Errno::EPERM)
            ),
            "{missing}"
        );
        let file = fs::File::open("/dev/null").unwrap();
        let no_program = create(file.as_fd(), 1).unwrap_err();
        assert!(no_program.raw_os_error().is_some(), "{no_program}");
    }
}

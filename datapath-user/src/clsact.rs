//! Programs attached where the kernel has no tcx (before 6.6): direct-action filters of a `clsact`
//! queueing discipline.
//!
//! A filter is no object with a file descriptor that could be pinned. It stays until somebody
//! deletes it, and is found by interface, direction, [`PRIORITY`] and [`HANDLE`]. What says that it
//! is ours is a pin: the program, under the name that its link would have. It is pinned before the
//! filter is made, so that there is no filter of ours without it, and a filter that is there
//! without it is someone else's. Another pin, `clsact-<interface's number>`, says that the `clsact`
//! was made for us, and may go.
//!
//! The return codes are the same: `TCX_NEXT`, `TCX_DROP` and `TCX_REDIRECT` have the numbers of
//! `TC_ACT_UNSPEC`, which goes on to the next filter, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.

use std::error::Error as StdError;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use aya::programs::links::Link as _;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya_obj::generated::bpf_prog_type;
use datapath_tunnel::netlink::Netlink;
use nix::errno::Errno;

use crate::object::PROGRAMS;

/// Priority of our filters: others' filters with a lower number see a packet first, those with a
/// higher one what we have no opinion about.
pub(crate) const PRIORITY: u16 = 219;

/// Handle of our filters, within their priority.
pub(crate) const HANDLE: TcHandle = TcHandle::new(0, 1);

/// First part of the name of a pin that says that a `clsact` was made for us.
const QDISC: &str = "clsact";

/// What attaching fails with.
type Failure = Box<dyn StdError + Send + Sync>;

/// Attaches `program` to the interface that the name of its pin says, and pins it; says whether it
/// took the place of an earlier one, without a moment in between.
///
/// # Errors
///
/// What the kernel says: `EEXIST` where another's filter has our priority and handle.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    side: TcAttachType,
    path: &Path,
) -> Result<bool, Failure> {
    let (_, index) = named(path).ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let netlink = Netlink::open()?;
    let interface = name(&netlink, index)?.ok_or_else(|| io::Error::from(Errno::ENODEV))?;
    if netlink.add_clsact(index)? {
        pin(program, &made_here(path, index))?;
    }
    let is_ours = fs::exists(path)?;
    pin(program, path)?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let (attached, replaced) = match program.attach_with_options(&interface, side, options) {
        Err(error) if is_ours && errno(&error) == Some(Errno::EEXIST) => {
            (program.attach_to_link(ours(&interface, side)?), true)
        }
        other => (other, false),
    };
    match attached.and_then(|id| program.take_link(id)) {
        Ok(link) => {
            // It would detach when it is dropped; what is attached outlives this process.
            std::mem::forget(link);
            Ok(replaced)
        }
        Err(error) => {
            if !is_ours {
                fs::remove_file(path)?;
                drop_qdisc(&netlink, index, path)?;
            }
            Err(error.into())
        }
    }
}

/// Detaches what the pin says, removes it, and the `clsact` too if it was made for us and nobody
/// else uses it. An interface that is gone took both along.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn detach(path: &Path) -> Result<(), Failure> {
    let netlink = Netlink::open()?;
    let Some((program, index)) = named(path) else {
        // One that says that a `clsact` is ours, left when the process ended in between.
        if let Some(index) = qdisc_named(path) {
            return drop_qdisc(&netlink, index, path);
        }
        return Err(io::Error::from(ErrorKind::InvalidInput).into());
    };
    if let Some(interface) = name(&netlink, index)? {
        match ours(&interface, side(program))?.detach() {
            Err(error) if !matches!(errno(&error), Some(Errno::ENOENT | Errno::EINVAL)) => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    fs::remove_file(path)?;
    drop_qdisc(&netlink, index, path)
}

/// Detaches everything that pins in a directory say; returns how many programs that were, and what
/// went wrong.
pub(crate) fn detach_all(directory: &Path) -> (usize, Vec<Failure>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| is_pin(path))
        .collect();
    // What says that a `clsact` is ours goes with the last program.
    paths.sort_by_key(|path| named(path).is_none());
    let count = paths.iter().filter(|path| named(path).is_some()).count();
    let mut failures = Vec::new();
    for path in paths {
        if path.exists() {
            failures.extend(detach(&path).err());
        }
    }
    (count, failures)
}

/// Whether a pin among the links is one of ours: a program, under a name that we give.
pub(crate) fn is_pin(path: &Path) -> bool {
    let is_program = || {
        // A link answers as well; its type is where that of a program would be, and another one.
        let info = ProgramInfo::from_pin(path).ok()?;
        Some(info.program_type() == bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS)
    };
    (named(path).is_some() || qdisc_named(path).is_some()) && is_program() == Some(true)
}

/// The program and the number of the interface in the name of a pin, `from_pod-7`.
fn named(path: &Path) -> Option<(&'static str, u32)> {
    let (program, index) = path.file_name()?.to_str()?.rsplit_once('-')?;
    let program = PROGRAMS.into_iter().find(|known| *known == program)?;
    Some((program, index.parse().ok()?))
}

/// The number of the interface in `clsact-7`.
fn qdisc_named(path: &Path) -> Option<u32> {
    let (qdisc, index) = path.file_name()?.to_str()?.rsplit_once('-')?;
    (qdisc == QDISC).then(|| index.parse().ok())?
}

/// The direction that a program looks at.
fn side(program: &str) -> TcAttachType {
    match program {
        "to_pod" | "to_uplink" => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    }
}

/// The name of an interface; `None` if it is gone.
fn name(netlink: &Netlink, index: u32) -> Result<Option<String>, Failure> {
    Ok(netlink.link_by_index(index)?.map(|link| link.name))
}

/// The link that stands for our filter.
fn ours(interface: &str, side: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, side, PRIORITY, HANDLE, None)
}

/// Removes the `clsact` that was made for us, once the last filter is gone.
fn drop_qdisc(netlink: &Netlink, index: u32, path: &Path) -> Result<(), Failure> {
    let made_here = made_here(path, index);
    if !fs::exists(&made_here)? {
        return Ok(());
    }
    if netlink.link_by_index(index)?.is_some() {
        if netlink.has_filters(index)? {
            return Ok(());
        }
        netlink.delete_clsact(index)?;
    }
    fs::remove_file(made_here)?;
    Ok(())
}

/// The pin that says that the `clsact` of an interface was made for us.
fn made_here(path: &Path, index: u32) -> PathBuf {
    path.with_file_name(format!("{QDISC}-{index}"))
}

/// Pins a program where another may be pinned.
fn pin(program: &mut SchedClassifier, path: &Path) -> Result<(), Failure> {
    // The old pin stays until the new one takes its name: there is no moment without a record. No
    // interface has the number 0.
    let new = made_here(path, 0);
    remove(&new)?;
    program.pin(&new)?;
    fs::rename(&new, path)?;
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn errno(error: &ProgramError) -> Option<Errno> {
    let raw = match error {
        ProgramError::TcError(TcError::NetlinkError(error)) | ProgramError::NetlinkError(error) => {
            error.raw_os_error()
        }
        _ => None,
    };
    raw.map(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_say_what_is_attached_where() {
        assert_eq!(named(Path::new("/b/links/to_pod-7")), Some(("to_pod", 7)));
        assert_eq!(qdisc_named(Path::new("/b/links/clsact-7")), Some(7));
        for strange in ["to_pod", "to_pod-x", "pod-7", "clsact-7"] {
            assert_eq!(named(Path::new(strange)), None, "{strange}");
        }
        assert_eq!(side("to_uplink"), TcAttachType::Egress);
        assert_eq!(side("to_host"), TcAttachType::Ingress);
    }
}

//! Programs attached where the kernel has no tcx (before 6.6): direct-action filters of a `clsact`
//! queueing discipline.
//!
//! A filter is no object with a file descriptor that could be pinned. It stays until somebody
//! deletes it, and is found by interface, direction, [`PRIORITY`] and [`HANDLE`]. What says that it
//! is ours is a pin: the program, by the name that its link would have. It is pinned before the
//! filter is made, so that there is no filter of ours without it, and a filter that is there
//! without it is someone else's. A second one says that the `clsact` was made for us, and may go.
//!
//! The return codes are the same: `TCX_NEXT`, `TCX_DROP` and `TCX_REDIRECT` have the numbers of
//! `TC_ACT_UNSPEC`, which goes on to the next filter, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.

use std::error::Error as StdError;
use std::path::Path;
use std::{fs, io};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use datapath_tunnel::netlink::Netlink;
use nix::errno::Errno;

/// Priority of our filters: others' filters with a lower number see a packet first, those with a
/// higher one what we have no opinion about.
pub(crate) const PRIORITY: u16 = 219;

/// Handle of our filters, within their priority.
pub(crate) const HANDLE: TcHandle = TcHandle::new(0, 1);

/// What attaching fails with.
type Failure = Box<dyn StdError + Send + Sync>;

/// Attaches `program`, with `record` as the pin that tells so; puts it in the place of the one that
/// is attached by that record, without a moment in between.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    record: &Path,
) -> Result<(), Failure> {
    let netlink = Netlink::open()?;
    let link = netlink
        .link(interface)?
        .ok_or_else(|| io::Error::from(Errno::ENODEV))?;
    if netlink.add_clsact(link.index)? {
        repin(program, &made_here(record, interface))?;
    }
    let is_ours = fs::exists(record)?;
    repin(program, record)?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let attached = match program.attach_with_options(interface, side, options) {
        Err(error) if is_ours && errno(&error) == Some(Errno::EEXIST) => {
            program.attach_to_link(ours(interface, side)?)
        }
        other => other,
    };
    match attached.and_then(|id| program.take_link(id)) {
        Ok(link) => {
            // It would detach when it is dropped; what is attached outlives this process.
            std::mem::forget(link);
            Ok(())
        }
        Err(error) => {
            if !is_ours {
                fs::remove_file(record)?;
                drop_qdisc(&netlink, interface, record)?;
            }
            Err(error.into())
        }
    }
}

/// Detaches what is attached by `record`, and removes the `clsact` if it was made for us and nobody
/// else uses it. An interface that is gone took both along.
pub(crate) fn detach(interface: &str, side: TcAttachType, record: &Path) -> Result<(), Failure> {
    match ours(interface, side).map(aya::programs::links::Link::detach) {
        Ok(Err(error)) if !matches!(errno(&error), Some(Errno::ENOENT | Errno::EINVAL)) => {
            return Err(error.into());
        }
        Err(error) if error.raw_os_error() != Some(Errno::ENODEV as i32) => {
            return Err(error.into());
        }
        _ => {}
    }
    fs::remove_file(record)?;
    drop_qdisc(&Netlink::open()?, interface, record)
}

/// The link that stands for our filter.
fn ours(interface: &str, side: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, side, PRIORITY, HANDLE, None)
}

/// Removes the `clsact` that was made for us, once the last filter is gone.
fn drop_qdisc(netlink: &Netlink, interface: &str, record: &Path) -> Result<(), Failure> {
    let made_here = made_here(record, interface);
    if !fs::exists(&made_here)? {
        return Ok(());
    }
    if let Some(link) = netlink.link(interface)? {
        if netlink.has_filters(link.index)? {
            return Ok(());
        }
        netlink.delete_clsact(link.index)?;
    }
    fs::remove_file(made_here)?;
    Ok(())
}

/// The pin that says that the `clsact` of an interface was made for us.
fn made_here(record: &Path, interface: &str) -> std::path::PathBuf {
    record.with_file_name(format!("clsact-{}", interface.replace('.', "-")))
}

/// Pins a program where another may be pinned.
fn repin(program: &mut SchedClassifier, path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    program.pin(path)?;
    Ok(())
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

//! The queueing discipline `clsact`, which queues nothing: a place to attach filters to an
//! interface, for kernels before 6.6, which have no tcx.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use nix::errno::Errno;

use super::{Change, Netlink, NetlinkError, link::check_index, was_there};

/// Its handle, `ffff:`.
const HANDLE: TcHandle = TcHandle {
    major: u16::MAX,
    minor: 0,
};

impl Netlink {
    /// Adds a `clsact` to an interface; says whether it made one: `false` if there is one.
    ///
    /// An `ingress`, its older kin, counts as one too, though it has no place for what leaves.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if the interface is not there, `ENOENT` if the kernel has no
    /// `sch_ingress`.
    pub fn add_clsact(&self, index: u32) -> Result<bool, NetlinkError> {
        let operation = format_args!("add a clsact to interface {index}");
        check_index(operation, index)?;
        let mut message = message(index);
        message
            .attributes
            .push(TcAttribute::Kind("clsact".to_owned()));
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        let outcome = self.change(operation, Change::Create, request);
        was_there(outcome, &[Errno::EEXIST])
    }

    /// Deletes the `clsact` of an interface with all filters; says whether there was one.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EPERM` without `CAP_NET_ADMIN`.
    pub fn delete_clsact(&self, index: u32) -> Result<bool, NetlinkError> {
        let operation = format_args!("delete the clsact of interface {index}");
        check_index(operation, index)?;
        let request = RouteNetlinkMessage::DelQueueDiscipline(message(index));
        let outcome = self.change(operation, Change::Existing, request);
        was_there(outcome, &[Errno::ENOENT, Errno::EINVAL, Errno::ENODEV])
    }

    /// Tells whether the `clsact` of an interface has filters, in either direction.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Closed`], [`NetlinkError::Interrupted`], or the kernel's refusal.
    pub fn has_filters(&self, index: u32) -> Result<bool, NetlinkError> {
        let operation = format_args!("list the filters of interface {index}");
        check_index(operation, index)?;
        for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut message = message(index);
            message.header.handle = TcHandle::UNSPEC;
            message.header.parent.minor = minor;
            let request = RouteNetlinkMessage::GetTrafficFilter(message);
            if !self.list(operation, &request)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn message(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = HANDLE;
    message.header.parent = TcHandle::CLSACT;
    message
}

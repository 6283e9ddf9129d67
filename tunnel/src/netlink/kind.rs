//! Which kinds of virtual interfaces this kernel has.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;

use super::{Change, Netlink, NetlinkError, link::check_name};

impl Netlink {
    /// Tells whether this kernel has the driver for a kind of interface (`veth`, `geneve`, `bond`),
    /// by asking it for one called `name`, which is deleted at once. The kernel loads the driver's
    /// module for it if it has one.
    ///
    /// A driver that refuses to make an interface without further settings is there all the same.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for a name that no interface can have; the kernel's refusal:
    /// `EPERM` without `CAP_NET_ADMIN`, `EEXIST` if there is an interface of this name.
    pub fn has_kind(&self, kind: &str, name: &str) -> Result<bool, NetlinkError> {
        let operation = format!("try to add {kind} interface {name:?}");
        check_name(&operation, name)?;
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        let request = RouteNetlinkMessage::NewLink(message);
        match self.change(&operation, Change::Create, request) {
            Ok(()) => {
                if let Some(made) = self.link(name)? {
                    self.delete_link(made.index)?;
                }
                Ok(true)
            }
            // "Unknown device type" (__rtnl_newlink, net/core/rtnetlink.c).
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP as i32) => Ok(false),
            Err(error) => match error.errno().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EEXIST) | None => Err(error),
                Some(_) => Ok(true),
            },
        }
    }
}

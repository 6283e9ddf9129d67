//! Who holds what: owners, leases, reservations and the figures of a range.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::IpamError;
use crate::pool::Family;

/// The holder of a lease: one interface of one container, as CNI names them.
///
/// Both names follow the CNI specification's rules, so either is safe as one component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "OwnerFields")]
pub struct Owner {
    container_id: String,
    ifname: String,
}

impl Owner {
    /// Takes the two names, `CNI_CONTAINERID` and `CNI_IFNAME` of a plugin call.
    ///
    /// # Errors
    ///
    /// [`IpamError::InvalidName`] unless the container id is 1 to 255 ASCII letters, digits, `_`,
    /// `.` or `-` and starts with a letter or digit, and the interface name is 1 to 15 printable
    /// ASCII characters, none of them `/` or `:`, and not `.` or `..` (CNI specification 1.1.0,
    /// Parameters; `dev_valid_name` in net/core/dev.c).
    pub fn new(
        container_id: impl Into<String>,
        ifname: impl Into<String>,
    ) -> Result<Self, IpamError> {
        let (container_id, ifname) = (container_id.into(), ifname.into());
        let in_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if container_id.len() > 255
            || !container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !container_id.chars().all(in_id)
        {
            return Err(IpamError::InvalidName {
                what: "container id",
                value: container_id,
                rule: "use 1 to 255 letters, digits, `_`, `.` or `-`, starting with a letter or \
                       digit",
            });
        }
        let in_interface = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        if ifname.is_empty()
            || ifname.len() > 15
            || matches!(ifname.as_str(), "." | "..")
            || !ifname.chars().all(in_interface)
        {
            return Err(IpamError::InvalidName {
                what: "interface name",
                value: ifname,
                rule: "use 1 to 15 printable ASCII characters other than `/` and `:`",
            });
        }
        Ok(Self {
            container_id,
            ifname,
        })
    }

    /// Returns the container id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Returns the name of the interface inside the container.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// `container/interface`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// An owner as written, not yet looked at.
#[derive(Deserialize)]
struct OwnerFields {
    container_id: String,
    ifname: String,
}

impl TryFrom<OwnerFields> for Owner {
    type Error = IpamError;

    fn try_from(fields: OwnerFields) -> Result<Self, IpamError> {
        Self::new(fields.container_id, fields.ifname)
    }
}

/// The addresses that an owner holds, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Pool that the addresses are from.
    pub pool: String,
    /// Who holds them.
    pub owner: Owner,
    /// One or two addresses, of different families, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Boot in which the lease was made; compare it with [`Ipam::boot_id`](crate::Ipam::boot_id).
    /// No network namespace outlives its boot.
    pub boot_id: String,
    /// When the lease was made, in seconds since 1970, UTC.
    pub created_s: u64,
}

impl Lease {
    /// Returns the address of one family, if the lease has one.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// Which addresses a lease is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Families {
    /// One IPv4 address.
    V4,
    /// One IPv6 address.
    V6,
    /// One of each.
    Dual,
    /// One of each family that the pool has ranges of.
    OfPool,
}

/// An address set aside for the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Pool that the address is from.
    pub pool: String,
    /// The address.
    pub address: IpAddr,
    /// What it is for, such as `gateway`.
    pub purpose: String,
}

/// The figures of one range. `used + reserved + cooling + free` is `capacity`.
///
/// An IPv6 capacity exceeds what most JSON readers hold exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Pool that the range belongs to.
    pub pool: String,
    /// The range.
    pub range: IpNet,
    /// Usable addresses.
    pub capacity: u128,
    /// Addresses held by leases.
    pub used: u64,
    /// Addresses held by reservations.
    pub reserved: u64,
    /// Addresses released too recently to be given again.
    pub cooling: u64,
    /// Addresses that may be given now.
    pub free: u128,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("3f1c", "eth0")]
    #[case("a_b.c-d", "net1@x")]
    #[case(&"a".repeat(255), "abcdefghijklmno")]
    fn good_owners(#[case] container_id: &str, #[case] ifname: &str) {
        let owner = Owner::new(container_id, ifname).unwrap();
        assert_eq!(owner.to_string(), format!("{container_id}/{ifname}"));
        let json = serde_json::to_string(&owner).unwrap();
        assert_eq!(serde_json::from_str::<Owner>(&json).unwrap(), owner);
    }

    #[rstest]
    #[case("", "eth0", "container id")]
    #[case("..", "eth0", "container id")]
    #[case("-a", "eth0", "container id")]
    #[case("a/b", "eth0", "container id")]
    #[case("a\0", "eth0", "container id")]
    #[case("ä", "eth0", "container id")]
    #[case(&"a".repeat(256), "eth0", "container id")]
    #[case("a", "", "interface name")]
    #[case("a", "..", "interface name")]
    #[case("a", "a/b", "interface name")]
    #[case("a", "a:b", "interface name")]
    #[case("a", "a b", "interface name")]
    #[case("a", "abcdefghijklmnop", "interface name")]
    fn bad_owners_are_refused_however_they_arrive(
        #[case] container_id: &str,
        #[case] ifname: &str,
        #[case] which: &str,
    ) {
        let message = Owner::new(container_id, ifname).unwrap_err().to_string();
        assert!(message.starts_with(which), "{message}");
        let json = serde_json::json!({ "container_id": container_id, "ifname": ifname });
        let refused = serde_json::from_value::<Owner>(json).unwrap_err();
        assert!(refused.to_string().starts_with(which), "{refused}");
    }
}

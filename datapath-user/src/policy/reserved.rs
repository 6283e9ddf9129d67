//! Identities that are reserved, by number and name.

use datapath_kern::abi::endpoint::identity;

use super::Labels;

/// Names of the reserved identities, with their numbers, as the field has them.
pub(super) const RESERVED: [(u32, &str); 11] = [
    (identity::UNKNOWN, "unknown"),
    (identity::HOST, "host"),
    (identity::WORLD, "world"),
    (identity::UNMANAGED, "unmanaged"),
    (identity::HEALTH, "health"),
    (identity::INIT, "init"),
    (identity::REMOTE_NODE, "remote-node"),
    (identity::KUBE_APISERVER, "kube-apiserver"),
    (identity::INGRESS, "ingress"),
    (identity::WORLD_IPV4, "world-ipv4"),
    (identity::WORLD_IPV6, "world-ipv6"),
];

/// The name of a reserved identity; none of one that was allocated.
#[must_use]
pub fn reserved_identity(number: u32) -> Option<&'static str> {
    let found = RESERVED.iter().find(|(known, _)| *known == number);
    found.map(|(_, name)| *name)
}

/// The labels of a reserved identity, unless others are set.
pub(crate) fn labels(number: u32) -> Option<Labels> {
    reserved_identity(number).map(Labels::reserved)
}

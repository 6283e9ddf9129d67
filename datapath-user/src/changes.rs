//! What changed in the node's network, as a refresh found it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::uplink::UplinkState;

/// What a [refresh](crate::Datapath::refresh) found changed, and followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes(pub Vec<Change>);

/// Something that changed. `Display` says it in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
#[non_exhaustive]
pub enum Change {
    /// An uplink went down, came up, or is not there.
    UplinkState {
        /// Its name in the configuration.
        uplink: String,
        /// What it was.
        from: UplinkState,
        /// What it is.
        to: UplinkState,
    },
    /// An uplink is another interface of that name.
    UplinkIndex {
        /// Its name in the configuration.
        uplink: String,
        /// Index of the former interface.
        from: u32,
        /// Index of the one that is attached to now.
        to: u32,
    },
    /// The interface of an uplink has another name; it is followed by its index.
    UplinkRenamed {
        /// Its name in the configuration.
        uplink: String,
        /// Its name now.
        interface: String,
    },
    /// The MTU of an uplink.
    UplinkMtu {
        /// Its name in the configuration.
        uplink: String,
        /// What it was, bytes.
        from: u32,
        /// What it is, bytes.
        to: u32,
    },
    /// Pods are masqueraded behind other addresses.
    Masquerade {
        /// Name of the uplink in the configuration.
        uplink: String,
        /// Those addresses, one per family at most.
        behind: Vec<IpAddr>,
    },
    /// Prefixes outside that pods reach under their own addresses.
    NonMasquerade {
        /// Those that are new.
        added: Vec<IpNet>,
        /// Those that are not any more.
        removed: Vec<IpNet>,
    },
    /// This node has one more address.
    AddressAdded {
        /// The address.
        address: IpAddr,
    },
    /// This node has an address no more.
    AddressRemoved {
        /// The address.
        address: IpAddr,
    },
    /// This node's end of the tunnel to a peer.
    PeerLocal {
        /// Name of the peer.
        peer: String,
        /// The address that it has to send to.
        local: IpAddr,
    },
    /// The MTU of the pods' routes, and with it of their interfaces.
    PodMtu {
        /// What it was, bytes.
        from: u32,
        /// What it is, bytes.
        to: u32,
    },
    /// Flows that depended on something that is gone.
    Flows {
        /// Entries removed; two per connection.
        removed: usize,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UplinkState { uplink, from, to } => {
                write!(f, "uplink {uplink} was {from}, is {to}")
            }
            Self::UplinkIndex { uplink, from, to } => {
                write!(f, "uplink {uplink} was interface {from}, is interface {to}")
            }
            Self::UplinkRenamed { uplink, interface } => {
                write!(f, "uplink {uplink} is called {interface} now")
            }
            Self::UplinkMtu { uplink, from, to } => {
                write!(f, "MTU of uplink {uplink} was {from}, is {to}")
            }
            Self::Masquerade { uplink, behind } if behind.is_empty() => {
                write!(f, "no address to masquerade behind on uplink {uplink}")
            }
            Self::Masquerade { uplink, behind } => {
                write!(f, "masquerade on uplink {uplink} is behind")?;
                for address in behind {
                    write!(f, " {address}")?;
                }
                Ok(())
            }
            Self::NonMasquerade { added, removed } => {
                f.write_str("pods keep their own addresses")?;
                for (words, prefixes) in [(" towards", added), (", no more towards", removed)] {
                    if !prefixes.is_empty() {
                        f.write_str(words)?;
                    }
                    for prefix in prefixes {
                        write!(f, " {prefix}")?;
                    }
                }
                Ok(())
            }
            Self::AddressAdded { address } => write!(f, "address {address} added"),
            Self::AddressRemoved { address } => write!(f, "address {address} removed"),
            Self::PeerLocal { peer, local } => {
                write!(f, "tunnel to peer {peer} is from {local} now")
            }
            Self::PodMtu { from, to } => write!(f, "MTU of pods was {from}, is {to}"),
            Self::Flows { removed } => write!(f, "{removed} entries of flows removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line_and_survives_json() {
        let changes = Changes(vec![
            Change::UplinkState {
                uplink: "eth0".into(),
                from: UplinkState::Up,
                to: UplinkState::Missing,
            },
            Change::Masquerade {
                uplink: "eth0".into(),
                behind: vec![
                    "192.0.2.11".parse().unwrap(),
                    "2001:db8::11".parse().unwrap(),
                ],
            },
        ]);
        let lines: Vec<_> = changes.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "uplink eth0 was up, is missing",
                "masquerade on uplink eth0 is behind 192.0.2.11 2001:db8::11",
            ]
        );
        let json = serde_json::to_string(&changes).unwrap();
        assert!(json.contains(r#""change":"uplink-state""#), "{json}");
        assert_eq!(serde_json::from_str::<Changes>(&json).unwrap(), changes);
    }
}

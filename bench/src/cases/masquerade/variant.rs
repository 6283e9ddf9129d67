//! Who masquerades.

use std::fmt;

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    program,
    topology::plan::{self, UPLINK},
};

use crate::error::{Error, Result};

/// Who masquerades what leaves the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cases) enum Variant {
    /// We do.
    Datapath,
    /// iptables by way of `nf_tables`, as distributions have it.
    IptablesNft,
    /// iptables as it was.
    IptablesLegacy,
    /// nftables in its own words.
    Nftables,
    /// Nobody: the kernel routes.
    Plain,
}

impl Variant {
    /// Whoever ours can be measured against.
    pub(in crate::cases) const OTHERS: [Self; 4] = [
        Self::IptablesNft,
        Self::IptablesLegacy,
        Self::Nftables,
        Self::Plain,
    ];

    pub(in crate::cases) const fn name(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::Plain => "plain",
        }
    }

    /// The others of these names; all of them where there is no name.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a name that is not among them.
    pub(in crate::cases) fn of_names(names: &[String]) -> Result<Vec<Self>> {
        if names.is_empty() {
            return Ok(Self::OTHERS.to_vec());
        }
        let find = |name: &String| {
            let mut others = Self::OTHERS.into_iter();
            others
                .find(|other| other.name() == name)
                .ok_or_else(|| Error::Invalid {
                    what: "against",
                    value: name.clone(),
                    rule: "iptables-nft, iptables-legacy, nftables or plain",
                })
        };
        names.iter().map(find).collect()
    }

    /// Whether netfilter tracks connections.
    pub(in crate::cases) const fn has_conntrack(self) -> bool {
        matches!(
            self,
            Self::IptablesNft | Self::IptablesLegacy | Self::Nftables
        )
    }

    /// Gives a node the rules of it, and returns what the tool calls itself, if there is one.
    ///
    /// They are the usual ones: what leaves by the uplink is masqueraded; forwarded is what belongs
    /// to a connection, and what pods begin.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] without the tool, and with its own words where it does not take them.
    pub(in crate::cases) fn set_up(self, node: &Namespace) -> Result<Option<String>> {
        let pods = plan::pod_cidr(1, Family::Ipv4).to_string();
        let run = |tool: &'static str, package, line: &str| -> Result<String> {
            let mut command = node.command(tool);
            command.args(line.split(' '));
            Ok(program::output(tool, package, &mut command)?)
        };
        let iptables = |tool: &'static str| -> Result<Option<String>> {
            for line in [
                format!("-w -t nat -A POSTROUTING -o {UPLINK} -j MASQUERADE"),
                "-w -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
                format!("-w -A FORWARD -s {pods} -m conntrack --ctstate NEW -j ACCEPT"),
                "-w -P FORWARD DROP".to_owned(),
            ] {
                run(tool, "iptables", &line)?;
            }
            run(tool, "iptables", "--version").map(Some)
        };
        match self {
            Self::Datapath | Self::Plain => Ok(None),
            Self::IptablesNft => iptables("iptables-nft"),
            Self::IptablesLegacy => iptables("iptables-legacy"),
            Self::Nftables => {
                let rules = format!(
                    "add table ip masq; \
                     add chain ip masq leaving {{ type nat hook postrouting priority srcnat; }}; \
                     add rule ip masq leaving oifname {UPLINK} masquerade; \
                     add chain ip masq forwarded {{ type filter hook forward priority filter; policy drop; }}; \
                     add rule ip masq forwarded ct state established,related accept; \
                     add rule ip masq forwarded ip saddr {pods} ct state new accept"
                );
                run("nft", "nftables", &rules)?;
                run("nft", "nftables", "--version").map(Some)
            }
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

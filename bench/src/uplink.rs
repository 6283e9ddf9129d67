//! A network card of the machine that is measured on, instead of the lab's own wire.

use datapath_tunnel::netlink::{Link, Mac, Netlink, NetlinkError, Scope};

use crate::error::{Error, Result};

/// An interface that takes the place of the uplink of a lab's node, and whom its frames go to.
///
/// While a lab is up the interface is in the namespace of the node. Then it is given back: to the
/// namespace that it came from, under its name, on or off as it was. Its MAC and MTU stay; what
/// the kernel forgets when an interface moves (queueing disciplines, settings under
/// `net.ipv4.conf`) does not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub interface: String,
    /// The Ethernet address that all frames go to. Nobody has to answer there.
    pub next_hop: Mac,
}

impl Uplink {
    /// Reads the two from what a user writes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an address that is not one of a single host: `02:00:00:00:00:01`.
    pub fn parse(interface: &str, next_hop: &str) -> Result<Self> {
        let bytes: Option<Vec<u8>> = next_hop
            .split(':')
            .map(|byte| {
                let digits = byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
                u8::from_str_radix(byte, 16).ok().filter(|_| digits)
            })
            .collect();
        let mac = bytes.and_then(|bytes| Mac::try_from(bytes).ok());
        // The lowest bit of the first byte says that it is a group's (IEEE 802-2014 section 8.2.2).
        let single = mac.filter(|mac| *mac != [0; 6] && mac.first().is_some_and(|m| m & 1 == 0));
        let next_hop = single.ok_or_else(|| Error::Invalid {
            what: "uplink-mac",
            value: next_hop.to_owned(),
            rule: "the Ethernet address of one host, as 02:00:00:00:00:01; broadcast and groups \
                   would have every host of the network handle the frames",
        })?;
        Ok(Self {
            interface: interface.to_owned(),
            next_hop,
        })
    }

    /// Makes sure that the interface is in the calling thread's namespace and that nobody needs it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with what is in the way and what to do about it, [`Error::Uplink`] where
    /// the kernel does not tell.
    pub fn check(&self) -> Result<Link> {
        let here = Netlink::open().map_err(self.failed("look at"))?;
        let links = here.links().map_err(self.failed("look at"))?;
        let refuse = |rule| Error::Invalid {
            what: "uplink",
            value: self.interface.clone(),
            rule,
        };
        let link = links.iter().find(|link| link.name == self.interface);
        let link = link.ok_or_else(|| {
            refuse("there is no such interface here; `ip -br link` lists those there are")
        })?;
        let of_link = |index: Option<u32>| index == Some(link.index);
        let kind = link.kind.as_deref().unwrap_or_default();
        let lies_on_it = |other: &Link| {
            let pair = matches!(other.kind.as_deref(), Some("veth" | "netkit"));
            other.index != link.index && of_link(other.peer_index) && !pair
        };
        if link.loopback {
            return Err(refuse("loopback cannot be moved; name a network card"));
        }
        if link.master.is_some() {
            return Err(refuse(
                "it is a port of a bridge, bond or team; take it out first: \
                 `ip link set IF nomaster`, or name another",
            ));
        }
        if matches!(kind, "bridge" | "bond" | "team" | "vrf")
            || links.iter().any(|other| of_link(other.master))
        {
            return Err(refuse(
                "it is a bridge, bond or team; name a network card that is no port of one",
            ));
        }
        if links.iter().any(lies_on_it) {
            return Err(refuse(
                "other interfaces, as VLANs, lie on it and would be lost; remove them first, or \
                 name another",
            ));
        }
        let addresses = here.addresses().map_err(self.failed("look at"))?;
        let has_address = addresses
            .iter()
            .any(|address| of_link(Some(address.index)) && address.scope != Scope::Link);
        let routes = here.routes().map_err(self.failed("look at"))?;
        let has_default = routes.iter().any(|route| {
            let hops = route.next_hops.iter().map(|hop| Some(hop.index));
            let mut ways = hops.chain([route.index]);
            route.destination.prefix_len() == 0 && ways.any(of_link)
        });
        if has_default {
            return Err(refuse(
                "the default route leads over it, and the machine would be cut off; name a \
                 network card that the machine does not use",
            ));
        }
        if has_address {
            return Err(refuse(
                "it has addresses, so the machine uses it; remove them with `ip addr flush dev \
                 IF` if it may be taken, or name another",
            ));
        }
        if link.mac == self.next_hop {
            return Err(refuse(
                "--uplink-mac is its own address; give that of another host, or one that nobody \
                 has",
            ));
        }
        Ok(link.clone())
    }

    /// The next hop's address as people write it.
    pub(crate) fn next_hop_text(&self) -> String {
        let bytes = self.next_hop.map(|byte| format!("{byte:02x}"));
        bytes.join(":")
    }

    /// Makes the function that says that something could not be done with it, for `map_err`.
    pub(crate) fn failed(&self, operation: &'static str) -> impl Fn(NetlinkError) -> Error + use<> {
        let interface = self.interface.clone();
        move |source| Error::Uplink {
            operation,
            interface: interface.clone(),
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_to_one_host() {
        let uplink = Uplink::parse("ens2f0", "02:00:5e:00:00:fe").unwrap();
        assert_eq!(uplink.next_hop, [2, 0, 0x5e, 0, 0, 0xfe]);
        assert_eq!(uplink.next_hop_text(), "02:00:5e:00:00:fe");
        for bad in [
            "",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            let error = Uplink::parse("ens2f0", bad).unwrap_err().to_string();
            assert!(error.contains("uplink-mac"), "{bad}: {error}");
        }
    }
}

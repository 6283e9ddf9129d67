//! The kinds of interfaces that the kernel has: tried in the calling thread's namespace.

use datapath_tunnel::netlink::{DRIVER_REMEDY, Netlink, NetlinkError};

use super::{Finding, Level, chain};

/// A kind of interface, and what it is for.
struct Kind {
    name: &'static str,
    without: Level,
    purpose: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "veth",
        without: Level::Missing,
        purpose: "pods' interfaces and the gateway pair",
    },
    Kind {
        name: "netkit",
        without: Level::Warn,
        purpose: "pods' interfaces instead of veth",
    },
    Kind {
        name: "geneve",
        without: Level::Warn,
        purpose: "a tunnel device; mode `direct` does without",
    },
    Kind {
        name: "vlan",
        without: Level::Warn,
        purpose: "uplinks that are VLANs",
    },
    Kind {
        name: "bond",
        without: Level::Warn,
        purpose: "uplinks that are bonds",
    },
    Kind {
        name: "dummy",
        without: Level::Warn,
        purpose: "addresses and routes of operators; the datapath does without",
    },
];

/// Name of what is made; a namespace of its own has none beside it.
const TRIAL: &str = "dp_try";

pub(super) fn findings() -> Vec<Finding> {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => {
            let remedy = "in a container let its seccomp profile allow netlink sockets";
            return vec![Finding::missing("netlink", chain(&error), remedy)];
        }
    };
    let tried = KINDS
        .iter()
        .map(|kind| kind.finding(netlink.has_kind(kind.name, TRIAL)));
    tried.collect()
}

impl Kind {
    fn finding(&self, has: Result<bool, NetlinkError>) -> Finding {
        let Self {
            name,
            without,
            purpose,
        } = *self;
        let check = format!("{name} device");
        match has {
            Ok(true) => Finding::ok(check, format!("there, for {purpose}")),
            Ok(false) => Finding::new(
                check,
                without,
                format!("this kernel has no {name} device, for {purpose}"),
                DRIVER_REMEDY,
            ),
            Err(error) => Finding::new(
                check,
                without,
                chain(&error),
                "run as root, or give the process CAP_NET_ADMIN",
            ),
        }
    }
}

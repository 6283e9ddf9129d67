//! The datapath itself, opened and closed where nobody else is.

use std::net::IpAddr;

use aya::programs::{SchedClassifier, TcAttachType, tc};
use datapath_tunnel::netlink::{Netlink, NetlinkError, VethEnd};
use ipnet::IpNet;

use super::sandbox::Sandbox;
use super::{Finding, chain};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::error::Error;

/// The uplink of the trial.
const UPLINK: &str = "dp_up";
/// Its addresses (RFC 5737, RFC 3849), and those of pods that there are not.
const ADDRESSES: [(&str, &str, &str); 2] = [
    ("192.0.2.1/24", "10.0.0.0/24", "10.0.0.1"),
    ("2001:db8::1/64", "fd00:db8::/64", "fd00:db8::1"),
];

pub(super) fn findings(sandbox: &Sandbox) -> Vec<Finding> {
    let hooks = hooks();
    let uplink = match Uplink::make() {
        Ok(uplink) => uplink,
        Err(error) => {
            let found = format!("no interface to try it on: {}", chain(&error));
            let trial = Finding::missing("datapath", found, SEE_ABOVE);
            return vec![hooks, trial];
        }
    };
    let ipv6 = match uplink.families.get(1) {
        Some(_) => Finding::ok("IPv6", "interfaces take addresses of it"),
        None => Finding::warn(
            "IPv6",
            "interfaces take no addresses of it: pods have IPv4 only",
            "use a kernel built with CONFIG_IPV6, started without ipv6.disable=1",
        ),
    };
    let trial = match uplink.open(sandbox) {
        Ok(()) => Finding::ok(
            "datapath",
            "opened, attached and closed in a namespace of its own",
        ),
        Err(error) => Finding::missing("datapath", chain(&error), SEE_ABOVE),
    };
    vec![hooks, ipv6, trial]
}

const SEE_ABOVE: &str = "mend what is missing above, then try again";

/// How programs can be attached.
fn hooks() -> Finding {
    let check = "tcx or clsact";
    // A kernel without tcx does not know the question.
    let tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).map(drop);
    let clsact = tc::qdisc_add_clsact("lo");
    match (tcx, clsact) {
        (Ok(()), Ok(())) => Finding::ok(check, "both are there; programs are attached by tcx"),
        (Ok(()), Err(_)) => Finding::ok(check, "tcx is there"),
        (Err(_), Ok(())) => Finding::warn(
            check,
            "no tcx, only clsact: a filter of somebody else may end up before ours",
            "use Linux 6.6 or later",
        ),
        (Err(tcx), Err(clsact)) => Finding::missing(
            check,
            format!("neither: {}; {}", chain(&tcx), chain(&clsact)),
            "use Linux 6.6 or later, or a kernel built with CONFIG_NET_SCH_INGRESS and \
             CONFIG_NET_CLS_BPF",
        ),
    }
}

/// A cable with an address of each family that there is, IPv4 first.
struct Uplink {
    families: Vec<(IpNet, IpAddr)>,
}

impl Uplink {
    fn make() -> Result<Self, NetlinkError> {
        let netlink = Netlink::open()?;
        let link = netlink.add_veth(VethEnd::new(UPLINK), VethEnd::new("dp_far"))?;
        netlink.set_up(link.index, true)?;
        let mut families = Vec::new();
        for (address, pods, gateway) in ADDRESSES {
            let (Ok(address), Ok(pods), Ok(gateway)) =
                (address.parse(), pods.parse(), gateway.parse())
            else {
                continue;
            };
            if netlink.add_address(link.index, address).is_ok() {
                families.push((pods, gateway));
            }
        }
        Ok(Self { families })
    }

    fn open(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let (pod_cidrs, gateways) = self.families.iter().copied().unzip();
        let datapath = Datapath::open(Config {
            gateways,
            pod_cidrs,
            ..Config::new(sandbox.pins(), [UPLINK])
        })?;
        datapath.close()
    }
}

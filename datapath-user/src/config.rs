//! What a datapath is opened with.

mod policy;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use datapath_kern::abi::config::Config as Defaults;
use datapath_kern::abi::event::RING_BYTES;
use datapath_kern::abi::fragment::MAX_FRAGMENTS;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::masquerade::UplinkSpec;
use crate::masquerade::file::is_mapped;
use crate::sizes::{MAX_ENTRIES, MIN_ENTRIES};

pub use self::policy::{IdentitySource, PodStart, PolicyConfig, Revoke};

/// Settings of one node's datapath.
///
/// Read from TOML or JSON with the field names below; unknown fields are refused.
///
/// ```
/// use datapath_user::Config;
///
/// let config = Config {
///     pod_cidrs: vec!["10.244.1.0/24".parse()?],
///     gateways: vec!["10.244.1.1".parse()?],
///     ..Config::new("/run/datapath/bpffs", ["eth0"])
/// };
/// config.validate()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory for pinned maps and links. Where it is not on a BPF file system, one is mounted
    /// there, and unmounted at close.
    pub bpffs: PathBuf,
    /// Interfaces that lead off the node, and how pods leave by each.
    pub uplinks: Vec<UplinkSpec>,
    /// Addresses that pods have as their gateway, one per family at most; they become this node's.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Prefixes of this node's pods.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// How programs are attached to interfaces. Between a datapath that goes and one that adopts it
    /// with another setting, interfaces have no program for a moment.
    #[serde(default)]
    pub attach: Attach,
    /// What the interfaces of new pods are. Pods keep those that they have.
    #[serde(default)]
    pub pod_device: PodDevice,
    /// How pods of other nodes are reached.
    #[serde(default)]
    pub tunnel: Tunnel,
    /// This node's ends of the tunnel, one per family at most; default: the first address of the
    /// uplink.
    #[serde(default)]
    pub underlay: Vec<IpAddr>,
    /// Whether pods leave the node behind an address of its own, by the uplinks that do not say it
    /// themselves. [`MasqueradeRule`](crate::MasqueradeRule) tells which address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Prefixes outside that pods reach under their own addresses. Prefixes of pods need not be
    /// named, and what is named inside of them changes nothing.
    #[serde(default)]
    pub non_masquerade: Vec<IpNet>,
    /// File with more of them, in the format of ip-masq-agent; see
    /// [`NonMasquerade::parse`](crate::NonMasquerade::parse). It need not be there, which means its
    /// defaults. [`Datapath::refresh`](crate::Datapath::refresh) looks at it again, and
    /// [`Datapath::follow`](crate::Datapath::follow) whenever it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_masquerade_file: Option<PathBuf>,
    /// Where the identity of a tunnelled packet comes from.
    #[serde(default)]
    pub identity_from: IdentityFrom,
    /// Room for established flows, entries of 184 bytes; two per connection. A power of two.
    ///
    /// Default: from the memory. Together with a quarter as many flows not yet proven, the largest
    /// number that takes no more than 0.25 % of the machine's memory, nor an eighth of what the
    /// process's control group may use; 16384 at least, 4194304 at most. With 16 GiB that is 131072.
    ///
    /// A datapath that is adopted with another number keeps its flows: they move into a table of the
    /// new size a few at a time, and both tables take their memory meanwhile. Those that do not fit
    /// into a smaller one stay where they are as long as they live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flows: Option<u32>,
    /// Room for flows not yet proven, entries likewise. A power of two. Default: a quarter of those
    /// of established flows, 1024 at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// What one endpoint may have of the flow tables at most.
    #[serde(default)]
    pub endpoint_share: EndpointShare,
    /// Whether a TCP flow may be picked up in the middle, by a segment with ACK and without SYN and
    /// RST: what was going on before the datapath came, or outlived its entry, goes on if policy
    /// allows it. Without, only a SYN begins one, and the others are dropped with a reason.
    #[serde(default = "yes")]
    pub tcp_loose: bool,
    /// Room for packets in fragments, entries; and as much again for the identifications that
    /// masqueraded ones leave with. A power of two. Each pod and each peer may have an eighth of
    /// them unfinished.
    #[serde(default = "max_fragments")]
    pub max_fragments: u32,
    /// What becomes of a fragment that comes ahead of its first one.
    #[serde(default)]
    pub fragments: EarlyFragments,
    /// Source ports that masquerade hands out. A flow keeps its own where that is free.
    ///
    /// An eighth of them is a reserve, from three eighths of the range on (25216-33279 of the
    /// default range): those are handed out last, and not to a pod that holds three quarters of the
    /// others to the same remote, so that no pod leaves the rest without. No flow keeps one of
    /// them.
    #[serde(default)]
    pub nat_ports: PortRange,
    /// Source ports in that range that masquerade never hands out, and that no flow keeps: those of
    /// port mappings, for one, which belong to no socket. The tunnel's own port and ports that a TCP
    /// or UDP socket of the node would answer on are left out by themselves.
    ///
    /// ```toml
    /// nat_excluded_ports = [8472, { first = 30000, last = 32767 }]
    /// ```
    #[serde(default)]
    pub nat_excluded_ports: Vec<Ports>,
    /// How long flows live between two packets.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How policy is enforced.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// Events told in a second at most, of each drop reason on each CPU; the others are counted.
    /// Zero: none.
    #[serde(default = "events_per_s")]
    pub events_per_s: u32,
    /// Room for events that nobody has read yet, bytes. A power of two; an event takes 176.
    #[serde(default = "event_ring_bytes")]
    pub event_ring_bytes: u32,
    /// Of which judgements of policy there are events.
    #[serde(default)]
    pub verdicts: Verdicts,
    /// Events of judgements told in a second at most, on each CPU; the others are counted.
    #[serde(default = "verdicts_per_s")]
    pub verdicts_per_s: u32,
    /// File of an eBPF object to load instead of the built-in one, such as `cargo xtask ebpf`
    /// builds. Its ABI version must be this library's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<PathBuf>,
}

const fn yes() -> bool {
    true
}

const fn max_fragments() -> u32 {
    MAX_FRAGMENTS
}

const fn events_per_s() -> u32 {
    Defaults::DEFAULT.events_per_s
}

const fn verdicts_per_s() -> u32 {
    Defaults::DEFAULT.verdicts_per_s
}

const fn event_ring_bytes() -> u32 {
    RING_BYTES
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// By tcx links where the kernel has them, else as filters.
    #[default]
    Auto,
    /// By tcx links, behind those that are there (Linux 6.6).
    Tcx,
    /// As direct-action filters of a `clsact` queueing discipline, with priority 219 and handle 1:
    /// others' filters with a lower priority number come before, and those with a higher one behind.
    Clsact,
}

/// What pods' interfaces are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodDevice {
    /// netkit where the kernel has it and programs are attached by tcx links, else veth.
    #[default]
    Auto,
    /// An end of a veth pair.
    Veth,
    /// An end of a netkit pair (Linux 6.10, built with `CONFIG_NETKIT`): what a pod sends is judged
    /// before it leaves the pod, and dropped while no program judges it. Who sends what is dropped
    /// may see it (`ENOBUFS`). Others' programs at tcx ingress of the host's end, and captures
    /// there, do not see what the datapath redirects.
    Netkit,
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// GENEVE, written and removed by the datapath itself.
    #[default]
    Direct,
    /// No tunnel: the underlay routes them.
    Native,
}

impl Tunnel {
    /// The word for it in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Native => "native",
        }
    }
}

/// Where the identity of a tunnelled packet comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityFrom {
    /// The VNI: all nodes agreed on the numbers.
    #[default]
    Vni,
    /// The inner source address; a VNI that says otherwise is dropped.
    Ipcache,
}

/// What becomes of a fragment that comes ahead of its first one, which alone says whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EarlyFragments {
    /// It is dropped, with a reason. What comes from an uplink for an address of the node's own is
    /// the node's.
    #[default]
    Drop,
    /// From an uplink and for the address of a pod, it is given to the node's stack, with the rest
    /// of its packet; elsewhere it is dropped.
    ///
    /// The stack puts such packets together where something on the node has it do so before it
    /// routes them: any rule of netfilter that looks at connections has (`ct state`, `-m
    /// conntrack`). The node must forward what comes by the uplink. Where it does neither, they are
    /// lost as with [`EarlyFragments::Drop`].
    Stack,
}

/// Of which judgements of policy there are events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdicts {
    /// Of none.
    None,
    /// Of those of a direction of an endpoint that needs a rule.
    #[default]
    Judged,
    /// Of every new flow, also in a direction that needs no rule.
    All,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl Default for PortRange {
    #[allow(clippy::cast_possible_truncation, reason = "ports")]
    fn default() -> Self {
        Self {
            first: Defaults::DEFAULT.nat_port_min as u16,
            last: Defaults::DEFAULT.nat_port_max as u16,
        }
    }
}

/// What one endpoint may have of the flow tables at most, in percent of their room.
///
/// A flow counts against the local pod that began it, else against the pod that it was begun to.
/// A pod at its limit keeps the flows that it has; what would be one more is dropped ("CT: Endpoint
/// quota exceeded"). The node itself has no limit in the established table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointShare {
    /// Of the established table: as many flows at most. 100: no limit.
    pub established_percent: u8,
    /// Of the pending table: as many flows at most that an endpoint begins in any one second and
    /// that are not proven in it; and as many again that others begin to it. At 25, the flows of
    /// other pods have four seconds at least to prove themselves while one pod floods. 100: no
    /// limit.
    pub pending_percent: u8,
}

impl Default for EndpointShare {
    fn default() -> Self {
        Self {
            established_percent: 50,
            pending_percent: 25,
        }
    }
}

impl EndpointShare {
    fn check(self) -> Result<(), Error> {
        for (field, percent) in [
            (
                "endpoint_share.established_percent",
                self.established_percent,
            ),
            ("endpoint_share.pending_percent", self.pending_percent),
        ] {
            if !(1..=100).contains(&percent) {
                return Err(Error::Setting {
                    field,
                    value: percent.to_string(),
                    rule: "must be from 1 to 100, which is no limit",
                });
            }
        }
        Ok(())
    }

    /// Flows that are so much of a table's entries, two per flow; zero for no limit.
    pub(crate) fn flows(percent: u8, entries: u32) -> u32 {
        if percent >= 100 {
            return 0;
        }
        let flows = u64::from(entries) * u64::from(percent) / 200;
        u32::try_from(flows).unwrap_or(u32::MAX).max(1)
    }
}

/// A port, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a port, or the range { first = PORT, last = PORT }"
)]
pub enum Ports {
    /// One.
    One(u16),
    /// Several.
    Range(PortRange),
}

impl Ports {
    /// Numbers of the ports.
    pub(crate) fn numbers(self) -> RangeInclusive<u16> {
        match self {
            Self::One(port) => port..=port,
            Self::Range(PortRange { first, last }) => first..=last,
        }
    }
}

/// How long flows live between two packets, seconds.
///
/// | | here | Cilium | netfilter | RFC |
/// |---|---|---|---|---|
/// | TCP, open | 8000 | 8000 | 432000 | 5382, REQ-5: 7440 at least |
/// | TCP, half closed | 8000 | 8000 | 120, 60 | 5382, REQ-5: 240 at least |
/// | TCP, closed by both sides | 10 | 10 | 30, then 120 | 5382, REQ-5: 240 at least |
/// | TCP, reset | 10 | 10 | 10 | |
/// | TCP, not proven | 60 | 60 | 120, then 60 | 5382, REQ-5: 240 at least |
/// | UDP, proven | 180 | 60 | 120 | 4787, REQ-5: 120 at least, 300 better |
/// | UDP, not proven | 120 | 60 | 30 | 4787, REQ-5: 120 at least |
/// | ICMP echo, proven | 180 | 60 | 30 | 5508, REQ-2: 60 at least |
/// | ICMP echo, not proven | 120 | 60 | 30 | 5508, REQ-2: 60 at least |
/// | other protocols, proven | 180 | none | 600 | |
/// | other protocols, not proven | 120 | none | 600 | |
///
/// Where the RFCs ask for more they speak of boxes that nobody can mend, whose ports are used again
/// by other hosts at once. Here a closed or unproven flow that comes to life again after its time
/// begins another one, and keeps its port unless that was given to somebody else.
///
/// A half-closed connection is open the other way, where a server may be sending for hours: it
/// keeps the long life (netfilter's is two minutes).
///
/// A TCP flow is proven by the originator's ACK after an answer, others by the originator's second
/// packet after an answer. So a question with one answer, as most of DNS, is never proven; it needs
/// no more than its answer, and is not worth an entry that cannot be evicted. A stream that only
/// the other side sends stays unproven too, and lives on while its packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP, proven and open.
    pub tcp_established_s: u32,
    /// TCP, not proven.
    pub tcp_pending_s: u32,
    /// TCP, closed by both sides, or reset by one.
    pub tcp_closed_s: u32,
    /// Anything else, proven.
    pub other_established_s: u32,
    /// Anything else, not proven.
    pub other_pending_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        let defaults = Defaults::DEFAULT;
        Self {
            tcp_established_s: defaults.tcp_established_s,
            tcp_pending_s: defaults.tcp_pending_s,
            tcp_closed_s: defaults.tcp_closed_s,
            other_established_s: defaults.other_established_s,
            other_pending_s: defaults.other_pending_s,
        }
    }
}

/// Sizes that a flow table may have, entries.
const TABLE_SIZES: RangeInclusive<u32> = MIN_ENTRIES..=MAX_ENTRIES;

/// Sizes that the ring buffer of events may have, bytes: whole pages, also where those are large.
const RING_SIZES: RangeInclusive<u32> = 65_536..=1 << 30;

impl Config {
    /// Settings for a node with these uplinks, everything else by default: no pods yet.
    pub fn new<I, S>(bpffs: impl Into<PathBuf>, uplinks: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<UplinkSpec>,
    {
        Self {
            bpffs: bpffs.into(),
            uplinks: uplinks.into_iter().map(Into::into).collect(),
            gateways: Vec::new(),
            pod_cidrs: Vec::new(),
            attach: Attach::default(),
            pod_device: PodDevice::default(),
            tunnel: Tunnel::default(),
            underlay: Vec::new(),
            masquerade: true,
            non_masquerade: Vec::new(),
            non_masquerade_file: None,
            identity_from: IdentityFrom::default(),
            max_flows: None,
            max_pending: None,
            endpoint_share: EndpointShare::default(),
            tcp_loose: true,
            max_fragments: max_fragments(),
            fragments: EarlyFragments::default(),
            nat_ports: PortRange::default(),
            nat_excluded_ports: Vec::new(),
            timeouts: Timeouts::default(),
            policy: PolicyConfig::default(),
            events_per_s: events_per_s(),
            event_ring_bytes: event_ring_bytes(),
            verdicts: Verdicts::default(),
            verdicts_per_s: verdicts_per_s(),
            object: None,
        }
    }

    /// Checks what can be checked without a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for the first field that cannot be used.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |field: &'static str, value: String, rule: &'static str| {
            Err(Error::Setting { field, value, rule })
        };
        if !self.bpffs.is_absolute() {
            let value = self.bpffs.display().to_string();
            return wrong("bpffs", value, "must be an absolute path");
        }
        for (field, path) in [
            ("object", &self.object),
            ("non_masquerade_file", &self.non_masquerade_file),
        ] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                let value = path.display().to_string();
                return wrong(field, value, "must be an absolute path");
            }
        }
        self.validate_uplinks()?;
        for &prefix in &self.non_masquerade {
            if is_mapped(prefix) {
                let rule = "must be written as a prefix of IPv4 addresses, which it is";
                return wrong("non_masquerade", prefix.to_string(), rule);
            }
        }
        for (field, addresses) in [("gateways", &self.gateways), ("underlay", &self.underlay)] {
            for v4 in [true, false] {
                if addresses
                    .iter()
                    .filter(|address| address.is_ipv4() == v4)
                    .count()
                    > 1
                {
                    let value = format!("{addresses:?}");
                    return wrong(field, value, "must hold one address per family at most");
                }
            }
        }
        for gateway in &self.gateways {
            if !self.pod_cidrs.iter().any(|cidr| cidr.contains(gateway)) {
                return wrong(
                    "gateways",
                    gateway.to_string(),
                    "must lie inside one of pod_cidrs",
                );
            }
        }
        for cidr in &self.pod_cidrs {
            if cidr.network() != cidr.addr() {
                return wrong(
                    "pod_cidrs",
                    cidr.to_string(),
                    "must have no bits behind the prefix",
                );
            }
            let v4 = cidr.addr().is_ipv4();
            if !self.gateways.iter().any(|gateway| gateway.is_ipv4() == v4) {
                return wrong(
                    "pod_cidrs",
                    cidr.to_string(),
                    "needs a gateway of its family",
                );
            }
        }
        for (field, size) in [
            ("max_flows", self.max_flows),
            ("max_pending", self.max_pending),
            ("max_fragments", Some(self.max_fragments)),
        ] {
            let fits = |size: &u32| size.is_power_of_two() && TABLE_SIZES.contains(size);
            if let Some(size) = size.filter(|size| !fits(size)) {
                let rule = "must be a power of two from 1024 to 16777216";
                return wrong(field, size.to_string(), rule);
            }
        }
        let ring = self.event_ring_bytes;
        if !ring.is_power_of_two() || !RING_SIZES.contains(&ring) {
            let rule = "must be a power of two from 65536 to 1073741824";
            return wrong("event_ring_bytes", ring.to_string(), rule);
        }
        self.endpoint_share.check()?;
        self.policy.validate()?;
        self.validate_nat_ports()?;
        let times = self.timeouts;
        for (field, seconds) in [
            ("timeouts.tcp_established_s", times.tcp_established_s),
            ("timeouts.tcp_pending_s", times.tcp_pending_s),
            ("timeouts.tcp_closed_s", times.tcp_closed_s),
            ("timeouts.other_established_s", times.other_established_s),
            ("timeouts.other_pending_s", times.other_pending_s),
        ] {
            if !(1..=31_536_000).contains(&seconds) {
                return wrong(
                    field,
                    seconds.to_string(),
                    "must be from one second to one year",
                );
            }
        }
        Ok(())
    }

    fn validate_uplinks(&self) -> Result<(), Error> {
        let wrong = |value: String, rule: &'static str| {
            Err(Error::Setting {
                field: "uplinks",
                value,
                rule,
            })
        };
        if self.uplinks.is_empty() {
            return wrong("[]".into(), "must name at least one interface");
        }
        let mut names = BTreeSet::new();
        for uplink in &self.uplinks {
            uplink.validate()?;
            if !names.insert(&uplink.name) {
                return wrong(uplink.name.clone(), "must name each interface once");
            }
        }
        Ok(())
    }

    /// Checks which ports masquerade hands out.
    fn validate_nat_ports(&self) -> Result<(), Error> {
        let wrong = |field: &'static str, value: String, rule: &'static str| {
            Err(Error::Setting { field, value, rule })
        };
        let PortRange { first, last } = self.nat_ports;
        if first == 0 || first > last {
            let rule = "must begin at 1 or above and not end before it begins";
            return wrong("nat_ports", format!("{first}-{last}"), rule);
        }
        for ports in &self.nat_excluded_ports {
            if ports.numbers().is_empty() {
                let value = format!("{}-{}", ports.numbers().start(), ports.numbers().end());
                return wrong("nat_excluded_ports", value, "must not end before it begins");
            }
        }
        let left = (first..=last).find(|port| {
            let mut excluded = self.nat_excluded_ports.iter();
            !excluded.any(|ports| ports.numbers().contains(port))
        });
        if left.is_none() {
            let value = format!("all of {first}-{last}");
            return wrong("nat_excluded_ports", value, "must leave some of nat_ports");
        }
        Ok(())
    }

    /// The gateway of a family.
    pub(crate) fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.gateways
            .iter()
            .copied()
            .find(|gateway| gateway.is_ipv4() == v4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config {
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            gateways: vec!["10.244.1.1".parse().unwrap()],
            ..Config::new("/run/x", ["eth0"])
        }
    }

    #[test]
    fn room_for_fragments_is_a_power_of_two() {
        let mut config = good();
        for (size, usable) in [(512, false), (1024, true), (9000, false), (16_384, true)] {
            config.max_fragments = size;
            let error = config.validate().err().map(|error| error.to_string());
            assert_eq!(error.is_none(), usable);
            assert!(error.is_none_or(|text| text.contains("max_fragments")));
        }
    }

    #[test]
    fn what_becomes_of_early_fragments_is_a_word() {
        let read = |text: &str| toml::from_str::<Config>(text);
        let text = "bpffs = \"/run/x\"\nuplinks = [\"eth0\"]\n";
        let config = read(text).unwrap();
        assert_eq!(config.fragments, EarlyFragments::Drop);
        let config = read(&format!("{text}fragments = \"stack\"")).unwrap();
        assert_eq!(config.fragments, EarlyFragments::Stack);
        assert!(read(&format!("{text}fragments = \"hold\"")).is_err());
    }

    /// A field, and what makes it unusable.
    type Wrong = (&'static str, fn(&mut Config));

    #[test]
    fn a_wrong_field_is_named() {
        assert!(good().validate().is_ok());
        let bad: &[Wrong] = &[
            ("bpffs", |config| config.bpffs = "x".into()),
            ("uplinks", |config| config.uplinks = vec![]),
            ("gateways", |config| {
                config.gateways = vec!["10.9.0.1".parse().unwrap()];
            }),
            ("uplinks", |config| {
                config.uplinks = vec!["eth0".into(), "eth0".into()];
            }),
            ("non_masquerade", |config| {
                config.non_masquerade = vec!["::ffff:10.0.0.0/104".parse().unwrap()];
            }),
            ("non_masquerade_file", |config| {
                config.non_masquerade_file = Some("masq".into());
            }),
            ("pod_cidrs", |config| {
                config.pod_cidrs = vec!["10.244.1.7/24".parse().unwrap()];
            }),
            ("max_flows", |config| config.max_flows = Some(1000)),
            ("max_pending", |config| config.max_pending = Some(0)),
            ("event_ring_bytes", |config| config.event_ring_bytes = 1000),
            ("endpoint_share.pending_percent", |config| {
                config.endpoint_share = EndpointShare {
                    pending_percent: 0,
                    ..EndpointShare::default()
                };
            }),
            ("nat_ports", |config| {
                config.nat_ports = PortRange { first: 9, last: 8 }
            }),
            ("timeouts.tcp_closed_s", |config| {
                config.timeouts = Timeouts {
                    tcp_closed_s: 0,
                    ..Timeouts::default()
                };
            }),
        ];
        for (field, change) in bad {
            let mut config = good();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn a_share_is_of_flows_which_are_two_entries_each() {
        assert_eq!(EndpointShare::flows(50, 131_072), 32_768);
        assert_eq!(EndpointShare::flows(25, 2048), 256);
        assert_eq!(EndpointShare::flows(1, 100), 1, "never none");
        assert_eq!(EndpointShare::flows(100, 131_072), 0, "no limit");
    }

    #[test]
    fn excluded_ports_leave_some() {
        let wrong = [
            vec![Ports::Range(PortRange { first: 9, last: 8 })],
            vec![Ports::One(1024), Ports::Range(PortRange::default())],
        ];
        for nat_excluded_ports in wrong {
            let config = Config {
                nat_excluded_ports,
                ..good()
            };
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("nat_excluded_ports"), "{error}");
        }
    }

    #[test]
    fn ports_are_numbers_or_ranges() {
        let read = serde_json::from_str::<Vec<Ports>>;
        let (first, last) = (30_000, 32_767);
        let some = vec![Ports::One(8472), Ports::Range(PortRange { first, last })];
        let text = r#"[8472,{"first":30000,"last":32767}]"#;
        assert_eq!(read(text).unwrap(), some);
        assert_eq!(serde_json::to_string(&some).unwrap(), text);
        let error = read(r#"["x"]"#).unwrap_err().to_string();
        assert!(error.contains("expected a port, or the range"), "{error}");
    }
}

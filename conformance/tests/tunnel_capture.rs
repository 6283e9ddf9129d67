//! What goes over the underlay is GENEVE as others read it: Wireshark's dissector is asked.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    process::Command,
};

use datapath_conformance::{
    capture::Capture,
    family::Family,
    offload::{self, Offload},
    paths::{pod_address, pod_identity},
    probe::{self, UdpSession},
    topology::plan::{self, UPLINK},
};
use running::{Lab, To};
use util::{OrPanic, both_families, patient};

/// Identity of the other node, in whose name the node's own packets come (Cilium's reserved
/// identity "remote-node").
const REMOTE_NODE: u32 = 6;

const FIELDS: [&str; 12] = [
    "frame.number",
    "udp.srcport",
    "udp.dstport",
    "geneve.vni",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "ip.flags.df",
    "_ws.malformed",
    "_ws.expert.severity",
    "_ws.expert.message",
];

/// Severity "error" of Wireshark's expert information (epan/proto.h); below are remarks on the
/// course of a connection, such as a full window.
const ERROR: u32 = 0x0080_0000;
/// Tunnels over IPv6 may go without the outer checksum (RFC 6935, RFC 6936), which the dissector
/// has to be told.
const NO_OUTER_CHECKSUM: &str = "udp.ignore_ipv6_zero_checksum:TRUE";

#[test]
fn wireshark_reads_tunnels_over_ipv4() {
    whole_frames_and_joined_ones(Family::Ipv4);
}

#[test]
fn wireshark_reads_tunnels_over_ipv6() {
    whole_frames_and_joined_ones(Family::Ipv6);
}

/// Joined segments are what crosses a veth; single ones are what crosses a wire.
fn whole_frames_and_joined_ones(tunnel: Family) {
    let lab = Lab::start("capture", tunnel);
    for joined in [true, false] {
        for host in lab.uplinks() {
            let switches = [Offload::TxChecksum, Offload::Tso].map(|switch| (switch, joined));
            offload::set(host, UPLINK, &switches).or_panic();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tunnel.pcapng");
        let capture =
            Capture::start(lab.fabric.router(), &["n1"], &path, "tunnel capture").or_panic();
        traffic(&lab);
        let captured = capture.stop().or_panic();
        assert_eq!(captured.lost, 0);
        judge(&packets(&path, tunnel), tunnel);
    }
    lab.datapaths.stop().or_panic();
}

/// From both pods and the node to a pod of the other node, and what it answers.
fn traffic(lab: &Lab) {
    both_families(|family| {
        let server = To::Remote.server(family);
        for client in [
            lab.pod(1, 1),
            lab.pod(1, 2),
            lab.fabric.node(1)?.namespace(),
        ] {
            probe::tcp_echo(client, server, 100_000, &patient())?;
            let mut udp = UdpSession::open(client, server, &patient())?;
            for size in [0, 1, 1200] {
                udp.echo(size)?;
            }
            probe::icmp_echo(client, server.ip(), 3, 100, &patient())?;
        }
        Ok::<_, datapath_conformance::Error>(())
    });
}

/// A tunnel packet as the dissector shows it.
#[derive(Debug)]
struct Packet {
    number: String,
    ports: (u16, u16),
    vni: u32,
    outer: (IpAddr, IpAddr),
    inner: (IpAddr, IpAddr),
    dont_fragment: bool,
}

/// Every packet between tunnel ends; fails when the dissector finds fault with one.
fn packets(path: &Path, tunnel: Family) -> Vec<Packet> {
    let output = Command::new("tshark")
        .args(["-n", "-o", NO_OUTER_CHECKSUM, "-r"])
        .arg(path)
        .args([
            "-T",
            "fields",
            "-E",
            "separator=|",
            "-E",
            "occurrence=a",
            "-E",
            "aggregator=;",
        ])
        .args(FIELDS.iter().flat_map(|field| ["-e", field]))
        .output()
        .expect("tshark is not installed: it comes with the package tshark");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{complaints}");
    let text = String::from_utf8(output.stdout).unwrap();
    let packets = text.lines().filter_map(|line| packet(line, tunnel));
    packets.collect()
}

fn packet(line: &str, tunnel: Family) -> Option<Packet> {
    let values: Vec<Vec<&str>> = line
        .split('|')
        .map(|field| field.split(';').collect())
        .collect();
    assert_eq!(values.len(), FIELDS.len(), "{line}");
    let of = |name: &str| &values[FIELDS.iter().position(|field| *field == name).unwrap()];
    let severities = of("_ws.expert.severity")
        .iter()
        .filter(|text| !text.is_empty());
    let worst = severities.map(|text| text.parse::<u32>().unwrap()).max();
    assert!(
        of("_ws.malformed") == &[""] && worst < Some(ERROR),
        "{line}"
    );
    let own_name = |family| {
        if family == Family::Ipv4 {
            ("ip.src", "ip.dst")
        } else {
            ("ipv6.src", "ipv6.dst")
        }
    };
    let ends = |family, place: usize| {
        let (source, destination) = own_name(family);
        let read = |name| of(name).get(place)?.parse::<IpAddr>().ok();
        Some((read(source)?, read(destination)?))
    };
    if of("udp.dstport")[0] != "6081" {
        // Neighbour protocols and the like; nothing of a pod is among it.
        let source = ends(Family::Ipv4, 0).or(ends(Family::Ipv6, 0));
        let pods = Family::ALL.map(|family| [1, 2].map(|node| plan::pod_cidr(node, family)));
        let of_pod = |address| pods.iter().flatten().any(|net| net.contains(&address));
        assert!(
            !source.is_some_and(|(from, to)| of_pod(from) || of_pod(to)),
            "{line}"
        );
        return None;
    }
    let outer = ends(tunnel, 0).expect(line);
    // The inner packet is of the tunnel's own family, or of the other one.
    let other = Family::ALL
        .into_iter()
        .find(|family| *family != tunnel)
        .unwrap();
    let inner = ends(tunnel, 1).or(ends(other, 0)).expect(line);
    let number = |name: &str, place: usize| of(name)[place].parse::<u16>().expect(line);
    let vni = of("geneve.vni")[0];
    let vni = match vni.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).unwrap(),
        None => vni.parse().expect(line),
    };
    Some(Packet {
        number: of("frame.number")[0].to_owned(),
        ports: (number("udp.srcport", 0), number("udp.dstport", 0)),
        vni,
        outer,
        inner,
        dont_fragment: matches!(of("ip.flags.df")[0], "1" | "True"),
    })
}

fn judge(packets: &[Packet], tunnel: Family) {
    let ends = [1, 2].map(|node| plan::node_address(node, tunnel));
    let mut senders = BTreeMap::new();
    for family in Family::ALL {
        for (node, pod) in [(1, 1), (1, 2), (2, 1)] {
            let place = (node, pod_identity(node, pod));
            senders.insert(pod_address(node, pod, family), place);
        }
        senders.insert(plan::pod_gateway(1, family), (1, REMOTE_NODE));
    }
    let mut seen = BTreeMap::<_, BTreeSet<u16>>::new();
    for packet in packets {
        let (from, to) = packet.inner;
        let (node, identity) = *senders.get(&from).unwrap_or_else(|| panic!("{packet:?}"));
        assert_eq!(packet.vni, identity, "{packet:?}");
        assert!(senders.contains_key(&to), "{packet:?}");
        let expected = if node == 1 {
            (ends[0], ends[1])
        } else {
            (ends[1], ends[0])
        };
        assert_eq!(packet.outer, expected, "{packet:?}");
        assert!((49_152..=65_535).contains(&packet.ports.0), "{packet:?}");
        // IPv6 is never fragmented on the way.
        assert!(packet.dont_fragment || tunnel == Family::Ipv6, "{packet:?}");
        seen.entry((from, to)).or_default().insert(packet.ports.0);
    }
    // Every sender, there and back; three flows each, which routers can tell apart by the port.
    assert_eq!(seen.len(), 2 * 3 * 2, "{seen:#?}");
    let entropy: usize = seen.values().map(BTreeSet::len).sum();
    assert!(
        entropy > seen.len(),
        "all flows of two hosts have one port: {seen:#?}"
    );
    assert!(
        seen.values().all(|ports| ports.len() <= 3),
        "a flow has many ports: {seen:#?}"
    );
    let numbers: BTreeSet<_> = packets.iter().map(|packet| &packet.number).collect();
    assert_eq!(numbers.len(), packets.len());
}

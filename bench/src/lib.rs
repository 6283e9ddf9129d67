//! Measuring: micro benches of the packet logic, and lab benches of the datapath as a whole.
//!
//! **Micro benches** (`packet_path`, `geneve`) time the packet logic as ordinary code, over
//! collections instead of BPF maps: good to see whether a change made a stage dearer, and no
//! statement about packets in the kernel. Absolute times mean little; compare runs of one session.
//! `policy_compile` does the same for documents and their rules; `policy_update` for a change of
//! documents on a node with 100 endpoints, down to the kernel's maps, and needs root.
//!
//! **Lab benches** ([`cases`]) send real packets through real kernels, in network namespaces of
//! their own. They need root.
//!
//! | case | measures | bound |
//! |---|---|---|
//! | [`masquerade`](cases::Masquerade) | 64-byte UDP of four pods out behind the node's address, against iptables-nft, iptables-legacy, nftables and plain routing | see below |
//! | [`policy`](cases::Policy) | 64-byte frames of four pods that one of 100, 1,000 and 10,000 rules allows, against no rules; and against iptables of both backends with the same rules, for information | established packets: cost at most 1.05x (goal 1.02x); new flows: at most 1.3x |
//! | [`stream`](cases::Stream) | 64 MiB of TCP through the tunnel, TSO on, against plain routing | speed at least 0.95x |
//! | [`pingpong`](cases::PingPong) | one byte of TCP there and back, both ends on one CPU, against plain routing | cost at most 1.05x |
//! | [`family`](cases::AddressFamily) | a packet of IPv6 against one of IPv4, along four paths | cost at most 1.25x |
//! | [`cpus`](cases::Cpus) | two CPUs forwarding at once, against one at a time | speed at least 1.8x |
//!
//! ```console
//! # cargo bench -p datapath-bench --bench stream -- --gate
//! # dpctl bench run masquerade --flows 255,16384 --against iptables-nft --gate
//! ```
//!
//! Patterns of traffic of `masquerade`, and what they are held to against netfilter; plain routing is
//! for information:
//!
//! | pattern | what is sent | bound | goal |
//! |---|---|---|---|
//! | `established` | packets of 1 flow, 255, 16,384, 1,048,576, drawn at random | speed at least 1.8x, 2.0x, 1.9x, 2.0x | 2.1x, 2.4x, 2.3x, 2.5x |
//! | | the same, 1,048,576 flows of ours against 255 | cost at most 2.0x | 1.6x |
//! | `unproven` | packets of flows that nobody has answered | | |
//! | `new` | one SYN of each flow, into empty tables | speed at least 2.5x | 3.5x |
//! | `one-destination` | packets of 60,000 flows to one destination, 93 % of its ports | speed at least 1.0x, and no more flows without a port than the number of probes allows for | |
//! | `exhausted` | packets that there is no port for, against forwarded ones of ours | cost at most 1.0x | |
//!
//! Netfilter's table is as large as the machine's `nf_conntrack_max` and `nf_conntrack_buckets` say,
//! which no bench changes. What does not fit into it is skipped, with the setting that would do.
//!
//! Nothing but ratios of two samples taken right after each other is judged: the median of at
//! least 20, with its quartiles. Where the kernel puts what it allocates differs from lab to lab, and
//! what a packet costs with it, by some 5 %: with `--labs` they are of several. A round in which
//! anything that was sent did not arrive is void;
//! one in which somebody else used the CPUs does not count ([`round::Fate`]); where too few count,
//! the report says that the run is not usable instead of a verdict. Flows are opened by real
//! sockets, have had their replies, and are in the established table before and after each sample,
//! or it is an [`Error::NotEstablished`].
//!
//! `masquerade` can be measured on a network card of the machine ([`uplink::Uplink`]), which takes
//! the place of the node's uplink. Nobody has to be at its other end: a frame counts as delivered
//! when it is given to the card, as the last thing before its queue, and answers to the flows'
//! first packets are made there, too. Two labs cannot have one card: before each sample the lab that
//! had it is taken down, and the other is built and its flows opened anew. Rounds alternate as ever.
//!
//! Another program runs a case with [`run()`] and gets a [`Report`]:
//!
//! ```no_run
//! use datapath_bench::{cases, options::Options, run};
//!
//! let case = cases::named("stream").ok_or("no such case")?;
//! let report = run(case, &Options::default(), |_, _, _| {})?;
//! print!("{}", report.table());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use etherparse::PacketBuilder;

mod affinity;
pub mod cases;
pub mod cli;
pub mod contest;
pub mod error;
pub mod live;
pub mod load;
pub mod machine;
pub mod options;
mod programs;
pub mod report;
pub mod rig;
pub mod round;
mod run;
pub mod stats;
mod stopwatch;
mod table;
pub mod uplink;

pub use error::{Error, Result};
pub use report::Report;
pub use run::run;

/// A UDP frame with 18 bytes of data, which makes 60 bytes over IPv4, or `None` where the
/// addresses are of two families.
#[must_use]
pub fn udp(macs: (Mac, Mac), source: (IpAddr, u16), destination: (IpAddr, u16)) -> Option<Vec<u8>> {
    let (from, to) = macs;
    let ethernet = PacketBuilder::ethernet2(from, to);
    let ip = match (source.0, destination.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => return None,
    };
    let payload = [0x5a; 18];
    let mut frame = Vec::new();
    ip.udp(source.1, destination.1)
        .write(&mut frame, &payload)
        .ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_of_one_family() {
        let v4 = "10.0.0.1".parse().unwrap();
        let v6 = "fd00::1".parse().unwrap();
        let macs = ([2; 6], [2; 6]);
        assert_eq!(udp(macs, (v4, 1), (v4, 2)).unwrap().len(), 60);
        assert_eq!(udp(macs, (v6, 1), (v6, 2)).unwrap().len(), 80);
        assert_eq!(udp(macs, (v4, 1), (v6, 2)), None);
    }
}

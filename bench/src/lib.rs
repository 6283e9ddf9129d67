//! Frames for the micro benches.
//!
//! `cargo bench -p datapath-bench` times the packet logic as ordinary code, over collections
//! instead of BPF maps: good to see whether a change made a stage dearer, and no statement about
//! packets in the kernel. Absolute times mean little; compare runs of one session.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use etherparse::PacketBuilder;

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

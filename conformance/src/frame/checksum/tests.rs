use proptest::prelude::*;

use super::*;
use crate::frame::forge::{self, Place};

fn places(family: Family) -> (Place, Place) {
    let [from, to] = match family {
        Family::Ipv4 => ["192.0.2.11:1234", "192.0.2.12:80"],
        Family::Ipv6 => ["[2001:db8::11]:1234", "[2001:db8::12]:80"],
    };
    (
        Place {
            mac: [2, 0, 0, 0, 0, 1],
            address: from.parse().unwrap(),
        },
        Place {
            mac: [2, 0, 0, 0, 0, 2],
            address: to.parse().unwrap(),
        },
    )
}

/// One frame of every protocol, of both families; odd and even payloads.
fn frames() -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (1..=101).collect();
    let mut frames = Vec::new();
    for family in Family::ALL {
        let (from, to) = places(family);
        for length in [0, 1, 100, 101] {
            let payload = &payload[..length];
            frames.push(forge::udp(from, to, payload).unwrap());
            frames.push(forge::tcp_syn(from, to, payload).unwrap());
            frames.push(forge::echo_request(from, to, 7, payload).unwrap());
        }
    }
    frames
}

#[test]
fn forged_frames_are_right() {
    for frame in frames() {
        let layers = verify_checksums(&Frame::new(frame)).unwrap();
        assert_eq!(layers.len(), 1);
        assert_eq!(layers[0].transport, Transport::Verified);
    }
}

#[test]
fn any_flipped_bit_of_the_packet_is_noticed() {
    for frame in frames() {
        // After the Ethernet header; lengths, protocols and fragment bits change what the
        // frame *is*, so only addresses and payloads are flipped.
        let addresses = if frame[12] == 0x08 { 26..34 } else { 22..54 };
        let header_end = addresses.end;
        let payload = frame.len() - 1..frame.len();
        let ports = header_end..header_end + 4;
        for at in addresses.chain(ports).chain(payload) {
            // The first bytes of ICMP say what it is.
            for bit in [0x01, 0x80] {
                let mut bad = frame.clone();
                bad[at] ^= bit;
                let bad = verify_checksums(&Frame::new(bad));
                // Port 6081 could be hit by no single flip from these.
                assert!(bad.is_err(), "byte {at} bit {bit:#x}: {bad:?}");
            }
        }
    }
}

#[test]
fn a_deferred_checksum_is_judged_by_its_pseudo_header() {
    for family in Family::ALL {
        let (from, to) = places(family);
        let mut bytes = forge::udp(from, to, b"deferred").unwrap();
        let start = bytes.len() - b"deferred".len() - 8;
        let ends = Ends {
            source: from.address.ip(),
            destination: to.address.ip(),
        };
        let pseudo = !ends.pseudo(17, &bytes[start..]).ones_complement();
        bytes[start + 6..start + 8].copy_from_slice(&pseudo.to_ne_bytes());

        let mut frame = Frame::new(bytes);
        assert!(verify_checksums(&frame).is_err(), "not complete yet");
        frame.checksum = Checksum::Partial { start, offset: 6 };
        let layers = verify_checksums(&frame).unwrap();
        assert_eq!(layers[0].transport, Transport::Verified);
        frame.bytes[start + 7] ^= 1;
        assert!(matches!(
            verify_checksums(&frame),
            Err(ChecksumError::Wrong { .. })
        ));
        frame.checksum = Checksum::Partial {
            start: 4000,
            offset: 6,
        };
        assert!(matches!(
            verify_checksums(&frame),
            Err(ChecksumError::Outside { .. })
        ));
    }
}

#[test]
fn geneve_is_followed_into_the_inner_frame() {
    for (outer, inner) in [(Family::Ipv4, Family::Ipv6), (Family::Ipv6, Family::Ipv4)] {
        let (from, to) = places(inner);
        let inside = forge::echo_request(from, to, 1, b"inside").unwrap();
        let (from, mut to) = places(outer);
        to.address.set_port(GENEVE_PORT);
        let payload = forge::geneve(4711, &[0; 8], &inside);
        let bytes = forge::udp(from, to, &payload).unwrap();
        let layers = verify_checksums(&Frame::new(bytes.clone())).unwrap();
        assert_eq!(
            layers.iter().map(|l| l.family).collect::<Vec<_>>(),
            [outer, inner]
        );

        // Without the outer checksum, which tunnels may leave out, the inner one counts.
        let mut bytes = bytes;
        let udp = bytes.len() - payload.len() - 8;
        bytes[udp + 6..udp + 8].fill(0);
        let layers = verify_checksums(&Frame::new(bytes.clone())).unwrap();
        assert_eq!(layers[0].transport, Transport::Absent);
        assert_eq!(layers[1].transport, Transport::Verified);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(verify_checksums(&Frame::new(bytes)).is_err());
    }
}

#[test]
fn udp_without_checksum_is_for_ipv4() {
    for family in Family::ALL {
        let (from, to) = places(family);
        let mut bytes = forge::udp(from, to, b"x").unwrap();
        let udp = bytes.len() - 9;
        bytes[udp + 6..udp + 8].fill(0);
        let verified = verify_checksums(&Frame::new(bytes));
        match family {
            Family::Ipv4 => assert_eq!(verified.unwrap()[0].transport, Transport::Absent),
            Family::Ipv6 => assert!(matches!(verified, Err(ChecksumError::Missing { .. }))),
        }
    }
}

#[test]
fn what_is_no_ip_has_nothing_to_verify_and_stumps_are_refused() {
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([0; 20]);
    assert_eq!(verify_checksums(&Frame::new(arp)).unwrap(), []);
    let frame = frames().swap_remove(0);
    let stump = Frame::new(frame[..30].to_vec());
    assert!(matches!(
        verify_checksums(&stump),
        Err(ChecksumError::Malformed { .. })
    ));
}

proptest! {
    /// Whatever arrives, and wherever the kernel says the sum starts, nothing panics.
    #[test]
    fn any_bytes_get_a_verdict(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![[0x08, 0x00, 0x45], [0x86, 0xdd, 0x60]]),
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58]),
        partial in proptest::option::of((0_usize..300, 0_usize..300)),
    ) {
        // Far enough into the parser to be interesting.
        if bytes.len() > 23 {
            bytes[12..15].copy_from_slice(&kind);
            bytes[if kind[0] == 0x08 { 23 } else { 20 }] = protocol;
        }
        let mut frame = Frame::new(bytes);
        if let Some((start, offset)) = partial {
            frame.checksum = Checksum::Partial { start, offset };
            frame.segment_bytes = Some(1000);
        }
        let _ = verify_checksums(&frame);
    }
}

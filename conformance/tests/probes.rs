//! Probes say what came back, and notice what is wrong with it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod util;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use datapath_conformance::{
    Error,
    family::{Family, Protocol},
    frame::{
        Checksum, ChecksumError, Direction, Frame, Transport,
        forge::{self, Place},
        verify_checksums,
    },
    netns::Namespace,
    offload::{self, Offload},
    probe::{self, EchoServer, Failure, IcmpSession, RawPort, Seen, TcpSession, UdpSession},
    topology::{Fabric, plan},
};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use socket2::{Domain, SockAddr, Type};
use util::{OrPanic, at, both_families, fabric, impatient, patient};

/// Two hosts of a lab: the first node and the second, by name.
fn pair(fabric: &Fabric) -> (&Namespace, &Namespace) {
    let node = |number| fabric.node(number).or_panic().namespace();
    (node(1), node(2))
}

#[test]
fn sessions_last_and_the_server_remembers_its_clients() {
    let fabric = fabric("session", 2);
    let (client, host) = pair(&fabric);
    let server = EchoServer::start(host, &[80, 8080], &[53]).or_panic();
    both_families(|family| {
        let to = plan::node_address(2, family);
        let mut tcp = TcpSession::connect(client, at(to, 8080), &patient())?;
        let mut udp = UdpSession::open(client, at(to, 53), &patient())?;
        let mut icmp = IcmpSession::open(client, to, &patient())?;
        for size in [1, 1000, 40_000] {
            tcp.echo(size)?;
            udp.echo(size)?;
            icmp.echo(size)?;
        }
        assert_eq!(tcp.seen_source(), tcp.local_address()?);
        assert_eq!(udp.seen_source()?, udp.local_address()?);
        let seen = server.seen();
        let count = |protocol, port, client| {
            seen.get(&Seen {
                protocol,
                port,
                client,
            })
            .copied()
        };
        assert_eq!(count(Protocol::Tcp, 8080, tcp.local_address()?), Some(1));
        assert_eq!(count(Protocol::Udp, 53, udp.local_address()?), Some(4));
        Ok::<_, Error>(())
    });
    assert_eq!(server.seen().len(), 4, "nobody came to port 80");
}

#[test]
fn the_server_answers_from_the_address_it_was_asked_at() {
    let fabric = fabric("several", 2);
    let (client, host) = pair(&fabric);
    let netlink = host.netlink().or_panic();
    let uplink = host.link(plan::UPLINK).or_panic();
    let _server = EchoServer::start(host, &[80], &[53]).or_panic();
    both_families(|family| {
        let prefix = plan::underlay(family).prefix_len();
        let second = plan::node_address(77, family);
        let address = IpNet::new(second, prefix).unwrap();
        netlink.add_address(uplink.index, address).unwrap();
        probe::udp_echo(client, at(second, 53), &[100], &patient())?;
        probe::tcp_echo(client, at(second, 80), 100, &patient())?;
        Ok::<_, Error>(())
    });
}

#[test]
fn a_client_can_choose_where_it_comes_from() {
    let fabric = fabric("source", 2);
    let (client, host) = pair(&fabric);
    let _server = EchoServer::start(host, &[80], &[53]).or_panic();
    both_families(|family| {
        let to = plan::node_address(2, family);
        let source = at(plan::node_address(1, family), 4321);
        let options = patient().with_source(source);
        // Twice: the port is free again at once.
        for _ in 0..2 {
            let tcp = probe::tcp_echo(client, at(to, 80), 100, &options)?;
            assert_eq!(tcp.seen_source, Some(source));
        }
        let udp = probe::udp_echo(client, at(to, 53), &[100], &options)?;
        assert_eq!(udp.seen_source, Some(source));
        probe::icmp_echo(client, to, 1, 100, &options)?;
        Ok::<_, Error>(())
    });
}

#[test]
fn datagrams_can_be_sent_as_segments() {
    let fabric = fabric("segments", 2);
    let (client, host) = pair(&fabric);
    let _server = EchoServer::start(host, &[], &[443]).or_panic();
    both_families(|family| {
        let to = at(plan::node_address(2, family), 443);
        let mut session = UdpSession::open(client, to, &patient())?;
        session.echo_segmented(1200, 40)?;
        session.echo(1200)?;
        assert!(matches!(
            session.echo_segmented(0, 1),
            Err(Error::Invalid { .. })
        ));
        Ok::<_, Error>(())
    });
}

#[test]
fn refusal_silence_and_icmp_errors_are_told_apart() {
    let fabric = fabric("failures", 2);
    let (client, host) = pair(&fabric);
    let netlink = client.netlink().or_panic();
    let uplink = client.link(plan::UPLINK).or_panic();
    both_families(|family| {
        let to = plan::node_address(2, family);
        let refused = probe::tcp_echo(client, at(to, 81), 1, &patient()).unwrap_err();
        assert!(
            matches!(refused.failure(), Some(Failure::Refused)),
            "{refused}"
        );
        let refused = probe::udp_echo(client, at(to, 81), &[1], &patient()).unwrap_err();
        assert!(
            matches!(refused.failure(), Some(Failure::Refused)),
            "{refused}"
        );

        // A neighbour that is not there: packets go out and nothing comes back.
        let nobody = plan::node_address(99, family);
        netlink
            .add_neighbour(uplink.index, nobody, [2, 0, 0, 0, 9, 9])
            .unwrap();
        let silent = [
            probe::tcp_echo(client, at(nobody, 80), 1, &impatient()),
            probe::udp_echo(client, at(nobody, 80), &[1], &impatient()),
            probe::icmp_echo(client, nobody, 1, 1, &impatient()),
        ];
        for outcome in silent {
            let silence = outcome.unwrap_err();
            assert!(
                silence.failure().is_some_and(Failure::is_silence),
                "{silence}"
            );
            assert!(silence.to_string().contains(client.name()), "{silence}");
        }

        let short = patient().with_hop_limit(1);
        let outside = plan::outside_address(family);
        let expired = probe::icmp_echo(client, outside, 1, 1, &short).unwrap_err();
        let kind = if family == Family::Ipv4 { 11 } else { 3 };
        let router = plan::fabric_address(family);
        assert!(
            matches!(
                expired.failure(),
                Some(&Failure::IcmpError { from, kind: k, code: 0, .. }) if (from, k) == (router, kind)
            ),
            "{expired}"
        );
        Ok::<_, Error>(())
    });
    drop(EchoServer::start(host, &[81], &[81]).or_panic());
}

#[test]
fn a_port_that_is_taken_cannot_be_served() {
    let fabric = fabric("taken", 1);
    let node = fabric.node(1).or_panic().namespace();
    let first = EchoServer::start(node, &[80], &[53]).or_panic();
    for (tcp, udp) in [(&[80][..], &[][..]), (&[], &[53])] {
        let second = EchoServer::start(node, tcp, udp).unwrap_err();
        assert!(matches!(second, Error::Os { .. }), "{second}");
        assert!(second.to_string().contains(node.name()), "{second}");
    }
    drop(first);
    drop(EchoServer::start(node, &[80], &[53]).or_panic());
}

/// A server that greets as it should and then answers with `lie`.
fn lying_tcp(host: &Namespace, port: u16, lie: impl Fn(&mut Vec<u8>) + Send + 'static) {
    let socket = host.socket(Domain::IPV6, Type::STREAM, None).or_panic();
    socket.set_only_v6(false).unwrap();
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&SockAddr::from(address)).unwrap();
    socket.listen(1).unwrap();
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        let (mut stream, client) = listener.accept().unwrap();
        let IpAddr::V6(ip) = client.ip() else {
            panic!("{client}")
        };
        stream.write_all(&ip.octets()).unwrap();
        stream.write_all(&client.port().to_be_bytes()).unwrap();
        let mut data = vec![0; 1000];
        stream.read_exact(&mut data).unwrap();
        lie(&mut data);
        stream.write_all(&data).unwrap();
    });
}

#[test]
fn lies_are_noticed() {
    let fabric = fabric("lies", 2);
    let (client, host) = pair(&fabric);
    let to = plan::node_address(2, Family::Ipv4);

    lying_tcp(host, 80, |data| data[700] ^= 1);
    let corrupt = probe::tcp_echo(client, at(to, 80), 1000, &patient()).unwrap_err();
    assert!(
        matches!(
            corrupt.failure(),
            Some(Failure::Corrupt {
                offset: 700,
                length: 1000,
                ..
            })
        ),
        "{corrupt}"
    );
    lying_tcp(host, 82, |data| data.push(0));
    let long = probe::tcp_echo(client, at(to, 82), 1000, &patient()).unwrap_err();
    assert!(
        matches!(long.failure(), Some(Failure::Length { received: 1.., .. })),
        "{long}"
    );
    lying_tcp(host, 81, |data| data.truncate(600));
    let short = probe::tcp_echo(client, at(to, 81), 1000, &patient()).unwrap_err();
    assert!(
        matches!(
            short.failure(),
            Some(Failure::Closed {
                received: 600,
                expected: 1000
            })
        ),
        "{short}"
    );

    let socket = host.socket(Domain::IPV4, Type::DGRAM, None).or_panic();
    socket.bind(&SockAddr::from(at(to, 53))).unwrap();
    let socket = UdpSocket::from(socket);
    let liar = thread::spawn(move || {
        let mut data = [0; 2000];
        for cut in [1, 0, 0] {
            let (length, from) = socket.recv_from(&mut data).unwrap();
            if cut == 0 {
                data[3] ^= 0x80;
            }
            socket.send_to(&data[..length - cut], from).unwrap();
        }
    });
    let mut session = UdpSession::open(client, at(to, 53), &patient()).or_panic();
    let cut = session.echo(100).unwrap_err();
    assert!(
        matches!(
            cut.failure(),
            Some(Failure::Length {
                expected: 100,
                received: 99
            })
        ),
        "{cut}"
    );
    let flipped = session.echo(100).unwrap_err();
    assert!(
        matches!(flipped.failure(), Some(Failure::Corrupt { offset: 3, .. })),
        "{flipped}"
    );
    let stranger = session.seen_source().unwrap_err();
    assert!(
        matches!(stranger.failure(), Some(Failure::Stranger)),
        "{stranger}"
    );
    liar.join().unwrap();
}

#[test]
fn forged_frames_arrive_as_they_were_sent() {
    let fabric = fabric("forged", 2);
    let (client, host) = pair(&fabric);
    let mut out = RawPort::open(client, plan::UPLINK).or_panic();
    let mut within = RawPort::open(host, plan::UPLINK).or_panic();
    both_families(|family| {
        let from = Place {
            mac: [2, 0xf0, 0, 0, 0, 1],
            address: at(plan::node_address(66, family), 1),
        };
        let to = Place {
            mac: within.mac(),
            address: at(plan::node_address(2, family), 9),
        };
        for frame in [
            forge::udp(from, to, b"forged")?,
            forge::tcp_syn(from, to, b"")?,
            forge::echo_request(from, to, 1, b"forged")?,
            forge::udp(from, to, &forge::geneve(7, &[], &[0; 60]))?,
        ] {
            out.send(&frame)?;
            let same = |seen: &Frame| seen.bytes == frame;
            let seen = within.receive(Duration::from_secs(5), same)?;
            let seen = seen.expect("the frame does not arrive");
            assert_eq!(seen.direction, Direction::In);
            assert_eq!(seen.checksum, Checksum::Complete);
            assert_eq!(seen.original_len, frame.len());
            assert_eq!(
                verify_checksums(&seen).unwrap()[0].transport,
                Transport::Verified
            );

            let mut bad = frame.clone();
            *bad.last_mut().unwrap() ^= 0x10;
            out.send(&bad)?;
            let same = |seen: &Frame| seen.bytes == bad;
            let seen = within.receive(Duration::from_secs(5), same)?;
            let verdict = verify_checksums(&seen.expect("the frame does not arrive"));
            assert!(
                matches!(verdict, Err(ChecksumError::Wrong { .. })),
                "{verdict:?}"
            );
        }
        Ok::<_, Error>(())
    });
    let long = vec![0; 5000];
    assert!(matches!(out.send(&long), Err(Error::Os { .. })));
    assert!(matches!(
        RawPort::open(client, "eth7"),
        Err(Error::NoInterface { .. })
    ));
}

/// What has crossed an interface to or from one of these TCP or UDP ports.
fn frames_of(port: &mut RawPort, numbers: [u16; 2]) -> Vec<Frame> {
    let ours = |frame: &Frame| {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).unwrap();
        let ends = match packet.transport {
            Some(TransportSlice::Tcp(tcp)) => [tcp.source_port(), tcp.destination_port()],
            Some(TransportSlice::Udp(udp)) => [udp.source_port(), udp.destination_port()],
            _ => return false,
        };
        ends.iter().any(|end| numbers.contains(end))
    };
    let mut frames = Vec::new();
    while let Some(frame) = port.receive(Duration::ZERO, ours).or_panic() {
        frames.push(frame);
    }
    frames
}

#[test]
fn checksums_are_right_with_and_without_offloads() {
    let fabric = fabric("offload", 2);
    let (client, host) = pair(&fabric);
    let _server = EchoServer::start(host, &[80], &[53]).or_panic();
    let switches = [
        Offload::TxChecksum,
        Offload::Tso,
        Offload::TxUdpSegmentation,
    ];
    for on in [true, false] {
        let wanted = switches.map(|offload| (offload, on));
        offload::set(client, plan::UPLINK, &wanted).or_panic();
        for offload in switches {
            assert_eq!(
                offload::get(client, plan::UPLINK, offload).or_panic(),
                Some(on)
            );
        }
        let mut port = RawPort::open(host, plan::UPLINK).or_panic();
        both_families(|family| {
            let to = plan::node_address(2, family);
            probe::tcp_echo(client, at(to, 80), 200_000, &patient())?;
            let mut udp = UdpSession::open(client, at(to, 53), &patient())?;
            udp.echo_segmented(1000, 20)?;
            let frames = frames_of(&mut port, [80, 53]);
            let incoming = || {
                frames
                    .iter()
                    .filter(|frame| frame.direction == Direction::In)
            };
            // The offloads of the sender decide: with them sums are left open and segments
            // joined, without them nothing is left to do.
            let open = incoming().any(|f| f.checksum != Checksum::Complete);
            let joined = incoming().any(|f| f.segment_bytes.is_some());
            assert_eq!((open, joined), (on, on));
            for frame in &frames {
                let layers = verify_checksums(frame).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(layers[0].transport, Transport::Verified);
                let mut bad = frame.clone();
                let source = match &SlicedPacket::from_ethernet(&frame.bytes).unwrap().net {
                    Some(NetSlice::Ipv6(_)) => 14 + 8,
                    _ => 14 + 12,
                };
                bad.bytes[source + 3] ^= 1;
                assert!(
                    verify_checksums(&bad).is_err(),
                    "a rewritten address goes unnoticed"
                );
            }
            Ok::<_, Error>(())
        });
    }
}

#[test]
fn offloads_that_do_not_change_are_an_error() {
    let fabric = fabric("stuck", 1);
    let node = fabric.node(1).or_panic().namespace();
    let stuck = offload::set(node, "lo", &[(Offload::TxChecksum, false)]).unwrap_err();
    assert!(
        matches!(
            stuck,
            Error::ProgramFailed { .. } | Error::OffloadStuck { .. }
        ),
        "{stuck}"
    );
    let missing = offload::set(node, "eth7", &[(Offload::Gro, false)]).unwrap_err();
    assert!(matches!(missing, Error::ProgramFailed { .. }), "{missing}");
    assert!(missing.to_string().contains("eth7"), "{missing}");
}

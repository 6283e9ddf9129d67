//! What arrives in tunnel packets, and what does not: peers, their addresses, identities, the
//! GENEVE header, and what it carries.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::metric::Direction::Ingress;
use datapath_kern::env::Table;
use datapath_kern::host::{Hook, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::DropReason;
use rstest::rstest;
use support::fragments::cut;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::sent::{TCP, between, from_uplink, into_pod, kind_wrap};
use support::tunnel::{self, Wrap};
use support::{from_pod, from_router, key, node, run};

#[rstest]
fn tunnel_packets_come_from_peers_by_their_way(#[values(V4, V6)] underlay: Family) {
    let host = node(1, underlay);
    let inner = tunnel::inner(1, &between(V4));
    let wrap = kind_wrap(underlay);
    let stranger = Wrap {
        source: plan::node(9, underlay),
        ..wrap.clone()
    };
    let pod = Wrap {
        source: plan::pod(1, 2, underlay),
        ..wrap.clone()
    };
    let elsewhere = Wrap {
        destination: plan::gateway(1, underlay),
        ..wrap.clone()
    };
    for wrong in [stranger, pod, elsewhere] {
        from_uplink(&host, &wrong.around(&inner)).dropped(Ingress, DropReason::TunnelUnknownPeer);
    }
    run(&host, Hook::FromUplink, 99, &wrap.around(&inner))
        .dropped(Ingress, DropReason::TunnelUnknownPeer);
    // The same once the flow is established.
    for _ in 0..2 {
        let out = from_uplink(&host, &wrap.around(&inner));
        into_pod(&out, 1, 1, "ingress to-endpoint", &between(V4), 62);
        from_pod(&host, 1, 1, &between(V4).answer(SYN | ACK));
        let ack = tunnel::inner(1, &between(V4).with_flags(ACK));
        from_uplink(&host, &wrap.around(&ack));
    }
    assert_eq!(host.flows.len(), 2);
    let ack = tunnel::inner(1, &between(V4).with_flags(ACK));
    let stranger = Wrap {
        source: plan::node(9, underlay),
        ..wrap.clone()
    };
    from_uplink(&host, &stranger.around(&ack)).dropped(Ingress, DropReason::TunnelUnknownPeer);
    run(&host, Hook::FromUplink, 99, &wrap.around(&ack))
        .dropped(Ingress, DropReason::TunnelUnknownPeer);
    from_router(&host, 1, &between(V4)).dropped(Ingress, DropReason::InvalidSourceIp);
}

#[rstest]
fn a_peer_speaks_for_its_own_addresses_only(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let to = plan::pod(1, 1, family);
    host.add_peer(1, 9, V4, 1).unwrap();
    let not_its = [
        plan::pod(9, 1, family),
        plan::node(9, family),
        plan::pod(1, 2, family),
        plan::gateway(1, family),
        plan::node(1, family),
        plan::outside(family),
    ];
    for source in not_its {
        let inner = tunnel::inner(1, &Tuple::new(source, to, TCP));
        from_uplink(&host, &kind_wrap(V4).around(&inner))
            .dropped(Ingress, DropReason::TunnelInvalidSource);
    }
    for source in [
        plan::pod(2, 150, family),
        plan::gateway(2, family),
        plan::node(2, family),
    ] {
        let tuple = Tuple::new(source, to, TCP);
        let out = from_uplink(&host, &kind_wrap(V4).around(&tunnel::inner(1, &tuple)));
        into_pod(&out, 1, 1, "ingress to-endpoint", &tuple, 62);
    }
}

#[rstest]
#[case(0, false)]
#[case(identity::HOST, false)]
#[case(identity::WORLD, false)]
#[case(identity::UNMANAGED, true)]
#[case(4, false)]
#[case(identity::REMOTE_NODE, true)]
#[case(255, false)]
#[case(256, true)]
#[case(0xff_ffff, true)]
fn agreed_numbers_are_taken_from_the_vni(#[case] vni: u32, #[case] taken: bool) {
    let host = node(1, V4);
    let out = from_uplink(
        &host,
        &Wrap::new(2, 1, V4, vni).around(&tunnel::inner(1, &between(V4))),
    );
    if taken {
        into_pod(&out, 1, 1, "ingress to-endpoint", &between(V4), 62);
        let flow = host.pending.get(&key(&between(V4))).unwrap();
        assert_eq!(flow.source_identity, vni);
    } else {
        out.dropped(Ingress, DropReason::InvalidIdentity);
    }
}

#[test]
fn numbers_that_nobody_agreed_on_must_match_the_address() {
    let mut host = node(1, V4);
    host.config.identity_from_vni = 0;
    let inner = tunnel::inner(1, &between(V4));
    for vni in [identity::REMOTE_NODE, plan::pod_identity(2, 2), 0xff_ffff] {
        from_uplink(&host, &Wrap::new(2, 1, V4, vni).around(&inner))
            .dropped(Ingress, DropReason::InvalidIdentity);
    }
    let out = from_uplink(&host, &kind_wrap(V4).around(&inner));
    into_pod(&out, 1, 1, "ingress to-endpoint", &between(V4), 62);
    // An established flow does not change hands either.
    let other = Wrap::new(2, 1, V4, plan::pod_identity(2, 2));
    from_uplink(&host, &other.around(&inner)).dropped(Ingress, DropReason::InvalidIdentity);
}

#[rstest]
fn malformed_tunnel_packets(#[values(V4, V6)] underlay: Family) {
    let host = node(1, underlay);
    let inner = tunnel::inner(1, &between(V4));
    let kind = kind_wrap(underlay);
    let malformed = [
        (
            "version 1",
            Wrap {
                first: [0x40, 0],
                ..kind.clone()
            },
        ),
        (
            "version 3",
            Wrap {
                first: [0xc0, 0],
                ..kind.clone()
            },
        ),
        (
            "control bit",
            Wrap {
                first: [0, 0x80],
                ..kind.clone()
            },
        ),
        (
            "IPv4 within",
            Wrap {
                protocol: 0x0800,
                ..kind.clone()
            },
        ),
        (
            "an option longer than the options",
            kind.clone().with_options(&[0, 0, 1, 1]),
        ),
    ];
    for (what, wrap) in malformed {
        let out = from_uplink(&host, &wrap.around(&inner));
        assert_eq!(out.reason, Some(DropReason::TunnelMalformed), "{what}");
    }
    let endless = Wrap {
        first: [0x3f, 0],
        ..kind.clone()
    };
    from_uplink(&host, &endless.around(&[0; 100])).dropped(Ingress, DropReason::TunnelMalformed);
    let critical = [
        (
            "the bit alone",
            Wrap {
                first: [0, 0x40],
                ..kind.clone()
            },
        ),
        (
            "an option alone",
            kind.clone().with_options(&[0, 0, 0x81, 0]),
        ),
        (
            "the second option",
            kind.clone()
                .with_options(&[0, 0, 1, 0, 0, 0, 0x80, 1, 9, 9, 9, 9]),
        ),
    ];
    for (what, wrap) in critical {
        let out = from_uplink(&host, &wrap.around(&inner));
        assert_eq!(out.reason, Some(DropReason::TunnelCriticalOption), "{what}");
    }
    let arp = frame::arp_request(1, 1, plan::gateway(1, V4));
    from_uplink(&host, &kind.around(&arp)).dropped(Ingress, DropReason::TunnelMalformed);
    from_uplink(&host, &kind.around(&inner[..12])).dropped(Ingress, DropReason::InvalidPacket);
    from_uplink(&host, &kind.around(&inner[..40])).dropped(Ingress, DropReason::InvalidPacket);
    assert!(host.pending.is_empty());
}

#[rstest]
fn options_that_need_not_be_understood_are_removed(
    #[values(V4, V6)] underlay: Family,
    #[values(V4, V6)] family: Family,
    #[values(4, 8, 252)] length: usize,
) {
    let host = node(1, underlay);
    let wrap = kind_wrap(underlay).with_options(&vec![0; length]);
    let out = from_uplink(&host, &wrap.around(&tunnel::inner(1, &between(family))));
    into_pod(&out, 1, 1, "ingress to-endpoint", &between(family), 62);
}

/// So far in that offsets would wrap around in the kernel.
#[rstest]
fn tunnel_packets_of_endless_headers(#[values(8, 16, 24)] units: u8) {
    let host = node(1, V6);
    let wrap = kind_wrap(V6).with_options(&[0; 252]);
    let packet = wrap.around(&tunnel::inner(1, &between(V4)));
    let out = from_uplink(&host, &tunnel::with_extension(packet, units));
    if units == 8 {
        into_pod(&out, 1, 1, "ingress to-endpoint", &between(V4), 62);
    } else {
        out.dropped(Ingress, DropReason::TunnelMalformed);
    }
}

#[rstest]
fn what_a_tunnel_packet_may_not_carry(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let wrap = kind_wrap(V4);
    let source = plan::pod(2, 1, family);
    let to = |destination| tunnel::inner(1, &Tuple::new(source, destination, TCP));
    // Nothing goes out again.
    for destination in [
        plan::outside(family),
        plan::pod(2, 2, family),
        plan::node(2, family),
    ] {
        from_uplink(&host, &wrap.around(&to(destination))).dropped(Ingress, DropReason::NoRoute);
    }
    let vacant = to(plan::pod(1, 150, family));
    from_uplink(&host, &wrap.around(&vacant)).dropped(Ingress, DropReason::Vacant);
    let mut error = tunnel::inner(
        1,
        &Tuple::new(source, plan::pod(1, 1, family), L4::EchoRequest(1)),
    );
    error[if family == V4 { 34 } else { 54 }] = 3;
    from_uplink(&host, &wrap.around(&error)).dropped(Ingress, DropReason::IcmpUnrelated);
    let datagram = Tuple::new(source, plan::pod(1, 1, family), L4::Udp(1, 2));
    let later = &cut(&tunnel::inner(1, &datagram), 8, 1)[1];
    let without_first = DropReason::FragmentWithoutFirst;
    from_uplink(&host, &wrap.around(later)).dropped(Ingress, without_first);
    let tuple = Tuple::new(source, plan::pod(1, 1, family), TCP);
    let last = frame::build([2; 6], [4; 6], &tuple, 1, b"hi");
    let out = from_uplink(&host, &wrap.around(&last));
    assert_eq!(out.reason, Some(DropReason::TtlExceeded));
    assert_eq!(out.counted, "ingress answered");
}

//! Flows that are judged again, by packets of either direction: what is revoked ends, what is allowed
//! goes on, and nothing comes back by itself.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::event::flags as told;
use datapath_kern::abi::flow::{flags, state, verdict};
use datapath_kern::abi::metric::Direction::{self, Egress, Ingress};
use datapath_kern::abi::policy::word;
use datapath_kern::env::{Env, Table};
use datapath_kern::host::{Host, Prefix, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{DropReason, Ruling};
use rstest::rstest;
use support::frame::{ACK, FIN, L4, SYN, Tuple};
use support::policy::{self, allow, direction_of, needs, switch};
use support::ways::{OUTSIDE, Path};
use support::{entry, from_pod, from_router, key};

/// Number of the rule set that allows what a test is about.
const SET: u32 = 7;
/// Number of another one.
const OTHER: u32 = 50;

/// Has every end that is asked need a rule, which allows it.
fn allowed(host: &Host, path: Path) {
    for (slot, direction, identity) in path.asked() {
        let (set, rule) = (SET + slot, 100 + slot);
        allow(host, set, direction, identity, (policy::TCP, 80), rule);
        switch(host, slot, needs(direction) | set);
    }
}

/// Has one of the ends allow nothing any more.
fn revoke(host: &Host, (slot, direction, _): (u32, Direction, u32)) {
    switch(host, slot, needs(direction));
}

fn flows(host: &Host) -> (usize, usize) {
    (host.flows.len(), host.pending.len())
}

/// On every way, in every end that is asked, by a packet of either direction: what is denied when it
/// is judged again ends, both halves; what policy allows again has to begin again.
#[rstest]
fn what_is_revoked_ends(
    #[values(V4, V6)] family: Family,
    #[values(
        Path::PodToPod,
        Path::PodToPeer,
        Path::PodToWorld,
        Path::PodToHost,
        Path::PeerToPod,
        Path::PeerToHost,
        Path::WorldToPod,
        Path::NativePeerToPod,
        Path::HostToPod,
        Path::HostToPeer,
        Path::StackToPod,
        Path::HostDnatToPod,
        Path::PodByStackToPod,
        Path::PodByStackToWorld,
        Path::HostToWorld,
        Path::WorldToHost
    )]
    path: Path,
    #[values(false, true)] by_reply: bool,
    #[values(false, true)] proven: bool,
) {
    for end in path.asked() {
        let mut host = path.host();
        host.config.tcp_loose = 0;
        allowed(&host, path);
        let tuple = path.tuple(family);
        if proven {
            path.establish(&host, &tuple);
        } else {
            assert_eq!(path.send(&host, &tuple).reason, None);
            assert_eq!(flows(&host), (0, 2));
        }
        revoke(&host, end);
        let ack = tuple.with_flags(ACK);
        let out = if by_reply {
            path.answer(&host, &tuple, ACK)
        } else {
            path.send(&host, &ack)
        };
        let case = format!("{path:?} {end:?}");
        assert_eq!(out.reason, Some(DropReason::PolicyDenied), "{case}");
        assert_eq!(flows(&host), (0, 0), "{case}");
        let last = out.verdicts.last().unwrap();
        assert_eq!(direction_of(last), end.1, "{case}");
        assert_eq!(last.head.outcome, verdict::DENY, "{case}");
        assert_eq!(last.head.flags & told::REPLY != 0, by_reply, "{case}");
        assert!(out.rulings.contains(&(end.1, Ruling::Denied)), "{case}");
        // It is allowed again: but what begins no flow does not continue one either. What the node
        // sends by itself is the exception: nothing begins it but a packet.
        allowed(&host, path);
        if matches!(path, Path::HostToWorld | Path::PodByStackToWorld) {
            continue;
        }
        let out = path.send(&host, &ack);
        assert_eq!(out.reason, Some(DropReason::TcpWithoutFlow), "{case}");
        path.establish(&host, &tuple);
    }
}

/// What was revoked is denied also where a segment in the middle may begin a flow.
#[rstest]
fn what_is_revoked_is_not_picked_up(#[values(V4, V6)] family: Family) {
    let path = Path::PodToPod;
    for end in path.asked() {
        let host = path.host();
        allowed(&host, path);
        let tuple = path.tuple(family);
        path.establish(&host, &tuple);
        revoke(&host, end);
        for _ in 0..3 {
            let out = path.send(&host, &tuple.with_flags(ACK));
            assert_eq!(out.reason, Some(DropReason::PolicyDenied));
            // The other side would begin one of its own, which its own ends are asked about.
            let back = path.answer(&host, &tuple, ACK);
            let other = entry(&host, &key(&tuple.answer(ACK)));
            let judged = other.map(|flow| flow.has(flags::REPLY));
            assert_eq!(
                (back.reason.is_none(), judged),
                (true, Some(false)),
                "{end:?}"
            );
            host.pending.remove(&key(&tuple.answer(ACK)));
            host.pending.remove(&key(&tuple));
        }
    }
}

/// An answer is judged as what it answers: by the ports and the ends that began it, translated or
/// not. A rule for the way back alone helps nobody.
#[rstest]
fn answers_are_judged_as_what_they_answer(
    #[values(V4, V6)] family: Family,
    #[values(Path::PodToPod, Path::PodToWorld, Path::StackToPod, Path::PeerToPod)] path: Path,
) {
    for (slot, direction, identity) in path.asked() {
        let host = path.host();
        allowed(&host, path);
        let tuple = path.tuple(family);
        path.establish(&host, &tuple);
        // Unchanged, and asked again: nothing to tell.
        host.endpoints.update(&slot, |end| end.generation += 1);
        let out = path.answer(&host, &tuple, ACK);
        assert_eq!((out.reason, out.verdicts.len()), (None, 0));
        assert_eq!(out.rulings, []);
        let flow = entry(&host, &path.key(&tuple)).unwrap();
        assert_eq!((flow.verdict, flow.rule_id != 0), (verdict::ALLOW, true));
        let wrong = if direction == Egress { Ingress } else { Egress };
        let set = 60 + slot;
        allow(&host, set, wrong, identity, (policy::TCP, 40_000), 61);
        allow(&host, set, direction, identity, (policy::TCP, 40_000), 62);
        switch(&host, slot, word::INGRESS | word::EGRESS | set);
        let out = path.answer(&host, &tuple, ACK);
        assert_eq!(out.reason, Some(DropReason::PolicyDenied), "{path:?}");
    }
}

/// Another rule, the same verdict: the flow remembers the new one, and nobody is told.
#[test]
fn another_rule_is_remembered() {
    let path = Path::PodToPod;
    let host = path.host();
    allowed(&host, path);
    let tuple = path.tuple(V4);
    path.establish(&host, &tuple);
    allow(
        &host,
        OTHER,
        Ingress,
        plan::pod_identity(1, 1),
        (policy::TCP, 80),
        500,
    );
    switch(&host, 2, word::INGRESS | OTHER);
    let out = path.send(&host, &tuple.with_flags(ACK));
    assert_eq!((out.reason, out.verdicts.len()), (None, 0));
    for key in [key(&tuple), key(&tuple.answer(ACK))] {
        assert_eq!(entry(&host, &key).unwrap().rule_id, 500);
    }
}

/// Where flows are drained, proven ones go on as they were, others do not, and none begins.
#[rstest]
fn drained_flows_go_on(
    #[values(V4, V6)] family: Family,
    #[values(
        Path::PodToPod,
        Path::PodToWorld,
        Path::PeerToPod,
        Path::HostToWorld,
        Path::WorldToHost,
        Path::PodByStackToWorld
    )]
    path: Path,
    #[values(false, true)] by_reply: bool,
) {
    for end in path.asked() {
        let mut host = path.host();
        host.config.revoke_drains = 1;
        allowed(&host, path);
        let tuple = path.tuple(family);
        path.establish(&host, &tuple);
        let before = entry(&host, &path.key(&tuple)).unwrap();
        revoke(&host, end);
        let case = format!("{path:?} {end:?}");
        for round in 0..3 {
            let outs = [
                (!by_reply).then(|| path.send(&host, &tuple.with_flags(ACK))),
                Some(path.answer(&host, &tuple, ACK)),
            ];
            for out in outs.into_iter().flatten() {
                let found = (out.reason, out.verdicts.len(), out.rulings.len());
                assert_eq!(found, (None, 0, 0), "{case} {round}");
            }
            revoke(&host, end);
        }
        let flow = entry(&host, &path.key(&tuple)).unwrap();
        let same = |flow: &datapath_kern::abi::flow::Flow| (flow.verdict, flow.rule_id, flow.pair);
        assert_eq!(same(&flow), same(&before), "{case}");
        // It ends like any other, and what begins after it is another one.
        path.send(&host, &tuple.with_flags(FIN | ACK));
        path.answer(&host, &tuple, FIN | ACK);
        let out = path.send(&host, &tuple.with_flags(SYN));
        assert_eq!(out.reason, Some(DropReason::PolicyDenied), "{case}");
        let other = Tuple {
            l4: L4::Tcp(40_001, 80, SYN),
            ..tuple
        };
        let out = path.send(&host, &other);
        assert_eq!(out.reason, Some(DropReason::PolicyDenied), "{case}");
    }
}

#[test]
fn what_is_not_proven_is_not_drained() {
    let path = Path::PodToPod;
    let mut host = path.host();
    host.config.revoke_drains = 1;
    allowed(&host, path);
    let tuple = path.tuple(V4);
    path.send(&host, &tuple);
    path.answer(&host, &tuple, SYN | ACK);
    revoke(&host, path.asked()[0]);
    let out = path.answer(&host, &tuple, ACK);
    assert_eq!(out.reason, Some(DropReason::PolicyDenied));
    assert_eq!(flows(&host), (0, 0));
}

/// What was drained is not for another one who has the address of an end now.
#[rstest]
#[case(Path::PodToPod, false)]
#[case(Path::PodToPod, true)]
#[case(Path::PeerToPod, true)]
fn what_another_one_took_over_is_not_drained(
    #[values(V4, V6)] family: Family,
    #[case] path: Path,
    #[case] by_reply: bool,
) {
    let mut host = path.host();
    host.config.revoke_drains = 1;
    allowed(&host, path);
    let tuple = path.tuple(family);
    path.establish(&host, &tuple);
    let next = || {
        if by_reply {
            path.answer(&host, &tuple, ACK)
        } else {
            path.send(&host, &tuple.with_flags(ACK))
        }
    };
    for &end in &path.asked() {
        revoke(&host, end);
    }
    assert_eq!(next().reason, None);
    let address = Addr::from(tuple.source);
    let mut entry = Env::ipcache(&host, &address).unwrap();
    entry.identity = 4242;
    let prefix = Prefix::host(tuple.source);
    host.ipcache.borrow_mut().set(prefix, entry);
    host.endpoints.update(&1, |pod| pod.identity = 4242);
    for &end in &path.asked() {
        revoke(&host, end);
    }
    assert_eq!(next().reason, Some(DropReason::PolicyDenied));
    assert_eq!(flows(&host), (0, 0));
}

/// Audit is taken from an endpoint, and with it what went on only for that.
#[rstest]
fn audit_begins_and_ends(#[values(false, true)] by_reply: bool) {
    let path = Path::PodToPod;
    let host = path.host();
    allowed(&host, path);
    let tuple = path.tuple(V4);
    path.establish(&host, &tuple);
    let next = |flags| {
        if by_reply {
            path.answer(&host, &tuple, flags)
        } else {
            path.send(&host, &tuple.with_flags(flags))
        }
    };
    switch(&host, 2, word::INGRESS | word::AUDIT);
    let out = next(ACK);
    assert_eq!(out.reason, None);
    let rulings = [(Ingress, Ruling::Audited), (Egress, Ruling::Allowed)];
    assert_eq!(out.rulings, rulings);
    for key in [key(&tuple), key(&tuple.answer(ACK))] {
        assert_eq!(entry(&host, &key).unwrap().verdict, verdict::AUDIT);
    }
    assert_eq!(next(ACK).verdicts.len(), 0);
    switch(&host, 2, word::INGRESS);
    assert_eq!(next(ACK).reason, Some(DropReason::PolicyDenied));
    assert_eq!(flows(&host), (0, 0));
}

/// Tunnel packets from pods are not excused by audit.
#[test]
fn audit_excuses_no_tunnel_packets() {
    let host = Path::PodToHost.host();
    switch(&host, 1, word::EGRESS | word::AUDIT);
    let tuple = Tuple::new(
        plan::pod(1, 1, V4),
        plan::node(1, V4),
        L4::Udp(40_000, 6081),
    );
    from_pod(&host, 1, 1, &tuple).dropped(Egress, DropReason::EncapsulationProhibited);
}

/// Ports that are used again are judged again, whichever side uses them: also where the flow that
/// is over has become stale meanwhile.
#[rstest]
fn ports_that_are_used_again_are_judged_for_who_begins(
    #[values(false, true)] stale: bool,
    #[values(false, true)] by_server: bool,
) {
    let path = Path::PodToPod;
    let host = path.host();
    allowed(&host, path);
    let tuple = path.tuple(V4);
    path.establish(&host, &tuple);
    path.send(&host, &tuple.with_flags(FIN | ACK));
    path.answer(&host, &tuple, FIN | ACK);
    let over = entry(&host, &key(&tuple)).unwrap();
    assert!(state::is_over(over.state));
    // Pod 1 is to be reached by nobody from here on.
    host.endpoints.update(&1, |pod| pod.policy |= word::INGRESS);
    if stale {
        host.endpoints.update(&1, |pod| pod.generation += 1);
    }
    if by_server {
        let out = path.answer(&host, &tuple, SYN);
        assert_eq!(out.reason, Some(DropReason::PolicyDenied));
        assert_eq!(flows(&host), (0, 0));
    } else {
        assert_eq!(path.send(&host, &tuple).reason, None);
        let flow = entry(&host, &key(&tuple)).unwrap();
        assert_ne!(flow.pair, over.pair);
    }
}

/// A denied flow leaves nothing that an answer or an error could come by.
#[rstest]
fn answers_to_what_was_denied_are_strangers(#[values(V4, V6)] family: Family) {
    let path = Path::PodToPod;
    let mut host = path.host();
    host.config.tcp_loose = 0;
    switch(&host, 2, word::INGRESS);
    let tuple = path.tuple(family);
    for flags in [SYN | ACK, ACK] {
        path.send(&host, &tuple)
            .dropped(Egress, DropReason::PolicyDenied);
        path.answer(&host, &tuple, flags)
            .dropped(Egress, DropReason::TcpWithoutFlow);
    }
    assert_eq!(flows(&host), (0, 0));
}

/// An answer to an echo begins nothing, also with the identifier that makes it look like a request.
#[rstest]
fn an_echo_reply_begins_nothing(#[values(V4, V6)] family: Family, #[values(0, 9)] identifier: u16) {
    let host = Path::PodToPod.host();
    let (own, outside) = (plan::pod(1, 1, family), plan::outside(family));
    for to in [plan::pod(1, 2, family), outside, plan::pod(2, 1, family)] {
        let reply = Tuple::new(own, to, L4::EchoReply(identifier));
        from_pod(&host, 1, 1, &reply).dropped(Egress, DropReason::IcmpUnrelated);
    }
    let reply = Tuple::new(outside, own, L4::EchoReply(identifier));
    from_router(&host, 1, &reply).dropped(Ingress, DropReason::IcmpUnrelated);
    assert_eq!(flows(&host), (0, 0));
    // What answers a request passes.
    let request = Tuple::new(own, plan::pod(1, 2, family), L4::EchoRequest(identifier));
    assert_eq!(from_pod(&host, 1, 1, &request).reason, None);
    assert_eq!(from_pod(&host, 1, 2, &request.answer(0)).reason, None);
}

/// The type of a request stands in the place of a port.
#[rstest]
fn echo_is_judged_by_its_type(#[values(V4, V6)] family: Family) {
    let host = Path::PodToPod.host();
    let (protocol, request) = if family == V4 { (1, 8) } else { (58, 128) };
    let peer = plan::pod_identity(1, 1);
    allow(&host, 5, Ingress, peer, (protocol, request), 55);
    switch(&host, 2, word::INGRESS | 5);
    let echo = Tuple::new(
        plan::pod(1, 1, family),
        plan::pod(1, 2, family),
        L4::EchoRequest(8),
    );
    assert_eq!(from_pod(&host, 1, 1, &echo).reason, None);
    let answer = echo.answer(0);
    assert_eq!(from_pod(&host, 1, 2, &answer).reason, None);
    switch(&host, 2, word::INGRESS | 5);
    assert_eq!(from_pod(&host, 1, 2, &answer).reason, None, "by the answer");
    policy::port(&host, 55, protocol, request, verdict::DENY, 56);
    switch(&host, 2, word::INGRESS | 5);
    let out = from_pod(&host, 1, 2, &answer);
    assert_eq!(out.reason, Some(DropReason::PolicyDeniedByRule));
    assert_eq!(out.event.unwrap().head.rule_id, 56);
    let world = Tuple::new(
        plan::outside(family),
        plan::pod(1, 2, family),
        L4::EchoRequest(8),
    );
    allow(&host, 5, Ingress, OUTSIDE, (protocol, 0), 57);
    assert_eq!(from_router(&host, 1, &world).reason, None);
}

//! What must hold of every frame, beside what `support::run_packet` checks.

use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::event::Hook;
use datapath_kern::abi::flow::{Flow, FlowKey, flags, scope};
use datapath_kern::abi::ipcache::{flags as prefix, kind};
use datapath_kern::env::{Env, Table};
use datapath_kern::host::{Buffer, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::{Action, Forward};

use super::frames::{self, NODE};
use crate::support::{Out, entry};

/// Checks what became of a frame at a hook.
///
/// # Panics
///
/// Where something does not hold.
pub(crate) fn outcome(host: &Host, hook: Hook, before: &Buffer, out: &Out, sound: bool) {
    let answered = out.counted.ends_with(Forward::Answered.label());
    let sent = !matches!(out.verdict.action, Action::Drop | Action::Consumed);
    if sound && sent {
        let wrong = frames::wrong_checksum(&out.bytes);
        assert_eq!(wrong, None, "{hook:?}: {} {:02x?}", out.counted, out.bytes);
    }
    if answered || !sent {
        return;
    }
    if hook == Hook::FromPod {
        own_source(host, before);
    }
    match out.verdict.action {
        Action::IntoPod => its_own(host, out),
        Action::Out | Action::OutToNeighbour
            if out.counted.ends_with(Forward::ToNetwork.label()) =>
        {
            behind_the_node(host, before, out);
        }
        // The stack sends nothing broken.
        Action::Pass if hook == Hook::ToUplink && sound => behind_the_node(host, before, out),
        _ => {}
    }
}

/// What a pod sends has its own address as source.
fn own_source(host: &Host, before: &Buffer) {
    if frames::is_ip(&before.bytes) {
        let (source, _) = frames::ends(&before.bytes);
        let own = addresses(host, before.interface);
        assert!(own.contains(&source), "{source} is not of {own:?}");
    }
}

/// What goes into a pod is for it.
fn its_own(host: &Host, out: &Out) {
    if frames::is_ip(&out.bytes) {
        let (_, destination) = frames::ends(&out.bytes);
        let own = addresses(host, out.verdict.interface);
        assert!(
            own.contains(&destination),
            "{destination} is not of {own:?}"
        );
    }
}

/// Addresses of the pod behind an interface.
fn addresses(host: &Host, interface: u32) -> [IpAddr; 2] {
    let slot = interface - plan::POD_INTERFACES;
    let pod = host.endpoints.get(&slot).unwrap_or_default();
    [pod.ipv4.to_ip(), pod.ipv6.to_ip()]
}

/// What leaves by an uplink that masquerades is in the node's name, or answers somebody who asked
/// the pod by its own address; and answers to what was translated find their way back.
fn behind_the_node(host: &Host, before: &Buffer, out: &Out) {
    let (Some(asked), Some(left)) = (key(&before.bytes), key(&out.bytes)) else {
        return;
    };
    let uplink = host.uplinks.get(&plan::UPLINK).unwrap_or_default();
    let family = if left.source.is_v4() {
        Family::V4
    } else {
        Family::V6
    };
    let masquerade = uplink.masquerade(family == Family::V4);
    let source = host.ipcache(&left.source).unwrap_or_default();
    let destination = host.ipcache(&left.destination).unwrap_or_default();
    let to = left.destination.to_ip();
    // What no stack forwards is left alone where only the stack can have sent it.
    if masquerade.is_none() || to.is_multicast() || to.is_loopback() {
        return;
    }
    if source.kind == kind::ENDPOINT {
        let kept = destination.flags & prefix::NO_MASQUERADE != 0
            || matches!(
                destination.kind,
                kind::PEER_POD | kind::ENDPOINT | kind::VACANT
            );
        let answers = entry(host, &asked).is_some_and(|flow| flow.has(flags::REPLY));
        assert!(kept || answers, "a pod's own source leaves: {left:?}");
    }
    let translated = asked.source != left.source;
    if translated {
        assert_eq!(left.source, masquerade, "in whose name it left");
        let (_, back) = reply(host, &left).unwrap_or_else(|| panic!("no way back for {left:?}"));
        assert_eq!(
            (back.nat_address, back.nat_port),
            (asked.source, asked.source_port),
            "the way back leads elsewhere"
        );
        let own: Addr = plan::gateway(NODE, family).into();
        assert_ne!(
            back.nat_address, own,
            "the gateway's packets are not a pod's"
        );
    }
}

/// The entry that answers to a packet are found by.
fn reply(host: &Host, left: &FlowKey) -> Option<(FlowKey, Flow)> {
    let key = left.reversed();
    entry(host, &key).map(|flow| (key, flow))
}

/// The key of a whole packet of TCP, UDP or echo without IP options.
fn key(bytes: &[u8]) -> Option<FlowKey> {
    let (at, protocol) = frames::transport(bytes)?;
    let word = |at: usize| {
        let pair = bytes.get(at..at + 2)?;
        Some(u16::from_be_bytes([pair[0], pair[1]]))
    };
    let (source_port, destination_port) = match protocol {
        6 | 17 => (word(at)?, word(at + 2)?),
        1 | 58 => match bytes.get(at)? {
            8 | 128 => (word(at + 4)?, 0),
            // To a flow's key an answer to identifier zero is a question with it: it is let out
            // as one, and nobody has a use for the way back.
            0 | 129 if word(at + 4)? == 0 => return None,
            0 | 129 => (0, word(at + 4)?),
            _ => return None,
        },
        _ => return None,
    };
    let (source, destination) = frames::ends(bytes);
    Some(FlowKey {
        source: source.into(),
        destination: destination.into(),
        source_port: source_port.into(),
        destination_port: destination_port.into(),
        protocol,
        scope: scope::PATH,
        reserved: [0; 2],
    })
}

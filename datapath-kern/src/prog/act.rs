//! Verdicts as return codes.

use aya_ebpf::bindings::{
    BPF_F_INGRESS, bpf_redir_neigh,
    tcx_action_base::{TCX_DROP, TCX_NEXT},
};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type,
};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::mark;
use datapath_kern::packet::Packet;
use datapath_kern::verdict::{Action, Verdict};

use super::arguments;
use super::skb::Skb;

/// Packet type of a frame addressed to this node (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// Has the kernel do what was decided: the program's return code. `gateway` is the neighbour for
/// verdicts that leave resolving it to the kernel; `received` says that the packet is on its way in,
/// at tcx ingress.
#[inline(always)]
pub(super) fn act(pkt: &mut Skb, verdict: Verdict, gateway: &Addr, received: bool) -> i32 {
    let Verdict { action, interface } = verdict;
    match action {
        Action::Pass => TCX_NEXT,
        Action::Drop | Action::Consumed => TCX_DROP,
        Action::IntoPod if received => into_pod(pkt, interface),
        Action::IntoPod => send_to_pod(pkt, interface),
        // SAFETY: a helper that takes numbers.
        Action::Out => (unsafe { bpf_redirect(interface, 0) }) as i32,
        Action::OutToNeighbour => to_neighbour(interface, gateway),
        // SAFETY: a helper that takes numbers.
        Action::ToHost => (unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) }) as i32,
    }
}

/// Into the namespace of the pod. The answer to a broadcast is not one itself.
#[inline(always)]
fn into_pod(pkt: &Skb, interface: u32) -> i32 {
    // SAFETY: a field of the context, and helpers on it.
    unsafe {
        if (*pkt.ctx).pkt_type != PACKET_HOST {
            bpf_skb_change_type(pkt.ctx, PACKET_HOST);
        }
        bpf_redirect_peer(interface, 0) as i32
    }
}

/// To the pod by way of its interface's queue, where the packet is not received yet: there
/// `bpf_redirect_peer` would drop it (`skb_do_redirect`, net/core/filter.c). `to_pod` goes by the
/// mark, which the pair then clears.
#[inline(always)]
fn send_to_pod(pkt: &mut Skb, interface: u32) -> i32 {
    pkt.set_mark(mark::with(pkt.mark(), mark::FORWARDED));
    // SAFETY: a helper that takes numbers.
    (unsafe { bpf_redirect(interface, 0) }) as i32
}

/// Out of an interface, by way of the kernel's neighbour table.
#[inline(always)]
fn to_neighbour(interface: u32, gateway: &Addr) -> i32 {
    let Some(arguments) = arguments::mine() else {
        return TCX_DROP;
    };
    let neighbour = &mut arguments.neighbour;
    if gateway.is_v4() {
        neighbour.nh_family = 2;
        neighbour.__bindgen_anon_1.ipv4_nh = gateway.v4_word();
    } else {
        neighbour.nh_family = 10;
        neighbour.__bindgen_anon_1.ipv6_nh = gateway.words();
    }
    // SAFETY: the struct has the layout and the size that the helper is told.
    let code = unsafe {
        bpf_redirect_neigh(
            interface,
            &raw mut *neighbour,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        )
    };
    code as i32
}

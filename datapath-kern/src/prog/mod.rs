//! The kernel's side: entry points of the six hooks, licence, panic handler.

mod act;
mod apart;
mod arguments;
mod env;
mod maps;
mod resize;
mod skb;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath_kern::abi::config::Settings;
use datapath_kern::abi::event::Hook;
use datapath_kern::pipeline;

use self::env::Kernel;
use self::skb::Skb;

macro_rules! hooks {
    ($($(#[$doc:meta])* $hook:ident $(unless $left_alone:path)?;)*) => {
        $($(#[$doc])*
        // In the entry point: each frame of the stack costs 32 bytes, also one of none.
        #[classifier]
        #[inline(always)]
        pub(crate) fn $hook(ctx: TcContext) -> i32 {
            let skb: *mut __sk_buff = ctx.skb.skb;
            let mut pkt = Skb::new(skb);
            $(if $left_alone(&pkt) {
                return TCX_NEXT;
            })?
            pkt.make_linear();
            // SAFETY: this CPU's own element; programs of this object do not run inside each other.
            let Some(work) = maps::WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work }) else {
                return TCX_DROP;
            };
            let env = Kernel::new(skb);
            let verdict = pipeline::$hook(&env, &mut pkt, work);
            let received = env.netkit_pods() == 0 || work.hook != Hook::FromPod;
            act::act(&mut pkt, verdict, &work.hop.gateway, received)
        })*
    };
}

hooks! {
    /// tcx ingress of the host's side of a pod's veth, or the pod's end of its netkit pair.
    from_pod;
    /// tcx egress of the host's side of a pod's pair.
    to_pod;
    /// tcx ingress of an uplink.
    from_uplink;
    /// tcx egress of an uplink.
    to_uplink unless pipeline::is_sent;
    /// tcx ingress of the far side of the gateway pair.
    from_host;
    /// tcx ingress of the node's side of the gateway pair.
    to_host;
}

/// Some helpers are for programs under the GPL only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: what could panic does not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! Stages as functions of their own, with global linkage: [`Apart`].

use aya_ebpf::bindings::__sk_buff;
use datapath_kern::stage::apart::Apart;
use datapath_kern::verdict::DropReason;
use datapath_kern::work::Work;

use super::env::Kernel;
use super::maps;

/// Calls a stage with what this CPU works on, which is `work`.
#[inline(always)]
pub(super) fn call(stage: Apart, ctx: *mut __sk_buff, work: &mut Work) -> Result<(), DropReason> {
    // It is changed behind our back.
    core::hint::black_box(core::ptr::from_mut(work));
    let failed = match stage {
        Apart::Masquerade => masquerade(ctx),
        Apart::Fragment => fragment(ctx),
    };
    // The other side of the call sees nothing of ours but the context: it hands back numbers only.
    match (failed, work.reason) {
        (0, _) => Ok(()),
        (_, Some(reason)) => Err(reason),
        (_, None) => Err(DropReason::InvalidPacket),
    }
}

/// [`Apart::Masquerade`]; zero unless it failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade(ctx: *mut __sk_buff) -> i32 {
    run(Apart::Masquerade, ctx)
}

/// [`Apart::Fragment`]; zero unless it failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fragment(ctx: *mut __sk_buff) -> i32 {
    run(Apart::Fragment, ctx)
}

#[inline(always)]
fn run(stage: Apart, ctx: *mut __sk_buff) -> i32 {
    // What is not used is not passed either, and the verifier wants to see a context passed.
    // SAFETY: it is the one that the program was entered with.
    unsafe { core::ptr::read_volatile(&raw const (*ctx).ifindex) };
    // SAFETY: this CPU's own element. The caller's reference to it is not used meanwhile, and what
    // is behind it is read anew afterwards: the function is not inlined.
    let Some(work) = maps::WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work }) else {
        return 1;
    };
    match stage.run(&Kernel::new(ctx), work) {
        Ok(()) => 0,
        Err(reason) => {
            work.reason = Some(reason);
            1
        }
    }
}

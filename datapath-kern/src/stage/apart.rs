//! Stages that the kernel's verifier looks at by themselves.
//!
//! The verifier follows every way through a program, and through a function once more for every
//! state that it is called in. Functions with global linkage it looks at once for each program,
//! whatever state they are called in (`do_check_subprogs` in `kernel/bpf/verifier.c`). For stages
//! with loops, which are reached in many ways, that is most of the time that loading takes.

use crate::env::Env;
use crate::stage::{fragment, nat};
use crate::verdict::DropReason;
use crate::work::Work;

/// A stage that is looked at by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// [`nat::masquerade`]
    Masquerade,
    /// [`fragment::part`]
    Fragment,
}

impl Apart {
    /// Calls it.
    ///
    /// # Errors
    ///
    /// What it says.
    #[inline(always)]
    pub fn run<E: Env>(self, env: &E, work: &mut Work) -> Result<(), DropReason> {
        match self {
            Self::Masquerade => nat::masquerade(env, work),
            Self::Fragment => fragment::part(env, work),
        }
    }
}

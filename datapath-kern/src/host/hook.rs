//! Running a hook.

use super::{Buffer, Host};
use crate::abi::addr::Addr;
use crate::abi::event::Hook;
use crate::pipeline;
use crate::verdict::{Action, DropReason, Verdict};
use crate::work::Work;

/// What became of a packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it goes.
    pub verdict: Verdict,
    /// Why it goes nowhere.
    pub reason: Option<DropReason>,
    /// The neighbour that the kernel must resolve; none where it need not.
    pub gateway: Addr,
}

impl Host {
    /// Has a packet go through a hook.
    ///
    /// The [`Work`] is that of the packet before, as it is in the kernel: what
    /// it holds must mean nothing. Only the reason is cleared, to be able to tell.
    pub fn run(&self, hook: Hook, packet: &mut Buffer) -> Run {
        match self.work.try_borrow_mut() {
            Ok(mut work) => self.run_with(&mut work, hook, packet),
            // Another CPU, in the middle of a packet of the first one.
            Err(_) => self.run_with(&mut Work::default(), hook, packet),
        }
    }

    fn run_with(&self, work: &mut Work, hook: Hook, packet: &mut Buffer) -> Run {
        work.reason = None;
        let verdict = match hook {
            Hook::FromPod => pipeline::from_pod(self, packet, work),
            Hook::ToPod => pipeline::to_pod(self, packet, work),
            Hook::FromUplink => pipeline::from_uplink(self, packet, work),
            Hook::ToUplink => pipeline::to_uplink(self, packet, work),
            Hook::FromHost => pipeline::from_host(self, packet, work),
            Hook::ToHost => pipeline::to_host(self, packet, work),
        };
        let resolve = verdict.action == Action::OutToNeighbour;
        let gateway = if resolve {
            work.hop.gateway
        } else {
            Addr::NONE
        };
        Run {
            verdict,
            reason: work.reason,
            gateway,
        }
    }
}

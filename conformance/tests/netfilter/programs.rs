//! The datapath: its programs in the kernel, run on one frame at a time.

use datapath_kern::{
    host::{Hook, plan},
    verdict::Action,
};

use crate::{Arrived, kernel::Kernel, traffic::From, world::Interfaces};

/// The programs, as on a node with pods.
pub(crate) struct Programs {
    kernel: Kernel,
    interfaces: Interfaces,
}

impl Programs {
    /// Loads them in the calling thread's network namespace, which has these interfaces.
    pub(crate) fn load(interfaces: Interfaces) -> Self {
        let host = interfaces.host(|_| {});
        Self {
            kernel: Kernel::like(&host),
            interfaces,
        }
    }

    /// Has a frame arrive; what goes on of it. What is left to the node's own stack goes nowhere,
    /// as the stack forwards nothing here.
    pub(crate) fn take(&mut self, from: From, pod: u8, frame: &[u8]) -> Option<Arrived> {
        let (hook, interface) = match from {
            From::Inside => {
                let slot = usize::from(pod) - 1;
                (Hook::FromPod, self.interfaces.pods[slot])
            }
            From::Outside => (Hook::FromUplink, self.interfaces.uplink),
        };
        let outcome = self.kernel.run(hook, interface, 0, frame);
        let outcome = outcome.unwrap_or_else(|error| panic!("{hook:?}: {error}"));
        self.kernel.take_events();
        let at = match outcome.action {
            Action::Drop | Action::Pass => return None,
            Action::Out | Action::OutToNeighbour => From::Outside,
            Action::IntoPod => From::Inside,
            other => panic!(
                "{other:?} of {}",
                plan::pod(1, pod, datapath_kern::packet::Family::V4)
            ),
        };
        let bytes = outcome.bytes;
        Some(Arrived { at, bytes })
    }
}

//! What another CPU does in the middle of a packet.

use core::cell::{Cell, RefCell};
use core::fmt;
use std::boxed::Box;

use super::Host;

type Act = Box<dyn FnOnce(&Host)>;

/// The turn of another CPU, between two accesses to tables.
#[derive(Default)]
pub(super) struct Turn {
    /// Accesses until then.
    after: Cell<usize>,
    act: RefCell<Option<Act>>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// A copy of a host has nothing ahead of it.
impl Clone for Turn {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Host {
    /// Has `act` done before the access to a table that comes after so many more of the packet path,
    /// as if by another CPU. It may [run](Host::run) packets.
    pub fn interrupt(&self, after: usize, act: impl FnOnce(&Self) + 'static) {
        self.turn.after.set(after);
        self.turn.act.replace(Some(Box::new(act)));
    }

    /// Whether an [interruption](Host::interrupt) is still to come. It is called off.
    pub fn call_off(&self) -> bool {
        self.turn.act.take().is_some()
    }

    /// Has the other CPU act where it is its turn.
    pub(super) fn yield_turn(&self) {
        let Some(left) = self.turn.after.get().checked_sub(1) else {
            // Taken out first: what it does has accesses of its own.
            let act = self.turn.act.take();
            if let Some(act) = act {
                act(self);
            }
            return;
        };
        self.turn.after.set(left);
    }
}

//! The flow tables as people read them, and their sweeping.

mod removal;
mod sweep;
mod table;
mod view;

pub use self::sweep::SweepReport;
pub(crate) use self::sweep::{remove, sweep};
pub(crate) use self::table::{entries, now_s};
pub(crate) use self::view::protocol;
pub use self::view::{FlowView, NatView};

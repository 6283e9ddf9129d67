//! The flow tables as people read them, and their sweeping.

mod census;
mod filter;
mod flush;
mod follow;
mod join;
mod list;
mod moving;
mod names;
mod pair;
mod removal;
mod sweep;
mod sweeper;
mod table;
mod view;
mod words;

pub(crate) use self::census::Census;
pub use self::filter::{EndFilter, FlowFilter, States, Who};
pub use self::flush::FlushReport;
pub(crate) use self::flush::flush;
pub use self::follow::{FlowChange, FlowFollower, FlowTurn};
pub use self::list::{FlowList, FlowOrder, FlowSort};
pub(crate) use self::names::Names;
pub use self::pair::{
    FlowEnd, FlowFamily, FlowFormat, FlowHalf, FlowNat, FlowPair, FlowState, FlowTableName,
    FlowVerdict, FlowWay, NatKind, Protocol,
};
pub(crate) use self::sweep::{remove, sweep};
pub(crate) use self::sweeper::{Counted, Sweeper};
pub use self::sweeper::{SweepPass, SweepReport, SweepSlice, SweepView};
#[cfg(test)]
pub(crate) use self::table::FlowTable;
pub(crate) use self::table::{Tables, Which, capacity, count, entries, memory_bytes, now_s};
pub(crate) use self::view::protocol;
pub use self::view::{FlowView, NatView};

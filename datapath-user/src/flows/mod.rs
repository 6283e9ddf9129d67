//! The flow tables as people read them, and their sweeping.

mod filter;
mod flush;
mod follow;
mod join;
mod list;
mod names;
mod pair;
mod removal;
mod sweep;
mod table;
mod view;
mod words;

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
pub use self::sweep::SweepReport;
pub(crate) use self::sweep::{remove, sweep};
pub(crate) use self::table::{entries, now_s};
pub(crate) use self::view::protocol;
pub use self::view::{FlowView, NatView};

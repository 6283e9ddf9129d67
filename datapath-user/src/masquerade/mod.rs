//! Masquerade: behind which address pods leave by an uplink, and where they keep their own.

pub(crate) mod file;
pub(crate) mod rule;
mod spec;

pub use self::file::{Listed, ListedBy, NonMasquerade, NonMasqueradeView};
pub use self::rule::MasqueradeRule;
pub use self::spec::{Masquerade, UplinkSpec};

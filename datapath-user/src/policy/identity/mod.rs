//! Numbers for sets of labels.

mod cluster;
mod local;

pub use cluster::ClusterIdentities;
pub use local::LocalIdentities;

use crate::error::Error;

use super::labels::Labels;

/// Finds numbers for sets of labels: the same one for equal labels, different ones otherwise, all
/// of them from [`FIRST_ALLOCATED`](datapath_kern::abi::endpoint::identity::FIRST_ALLOCATED) to
/// [`MAX`](datapath_kern::abi::endpoint::identity::MAX).
pub trait IdentityAllocator: Send {
    /// The number of some labels, found now if they have none. It is theirs until it is released;
    /// asking again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] where there is no free number, and whatever else the allocator may meet;
    /// then nothing is changed.
    fn allocate(&mut self, labels: &Labels) -> Result<u32, Error>;

    /// Nobody has the labels of this number any more.
    fn release(&mut self, number: u32);

    /// The labels that have a number.
    fn labels(&self, number: u32) -> Option<Labels>;
}

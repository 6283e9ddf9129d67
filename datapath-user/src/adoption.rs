//! What was taken over from an earlier process.

use serde::{Deserialize, Serialize};

/// What [`Datapath::open`](crate::Datapath::open) found of an earlier process, and did with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Endpoints that go on.
    pub endpoints_kept: usize,
    /// Endpoints that went with their pods meanwhile, or were half added or removed, by id.
    pub endpoints_removed: Vec<String>,
    /// Interfaces of pods that no endpoint was known for, by name.
    pub interfaces_removed: Vec<String>,
    /// Peers that go on.
    pub peers_kept: usize,
    /// Peers that were half added or removed, or fit the configuration no more, by name.
    pub peers_removed: Vec<String>,
    /// Links whose program was replaced.
    pub links_replaced: usize,
    /// Links that were missing.
    pub links_attached: usize,
    /// Links that nothing belongs to any more.
    pub links_removed: usize,
    /// Prefixes that the ipcache had wrong, or not, or too many.
    pub prefixes_changed: usize,
    /// Routes to pods that lead nowhere any more.
    pub routes_removed: usize,
    /// Entries of established flows that go on; two per connection.
    pub flows_kept: usize,
    /// Whether settings are others than before, so that all flows are judged again.
    pub flows_judged_again: bool,
}

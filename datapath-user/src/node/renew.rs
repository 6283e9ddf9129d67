//! What flows were decided on has changed: which of them look again, and which begin anew.

use std::collections::BTreeSet;

use datapath_kern::abi::flow::{End, Flow, FlowKey, flags};
use datapath_kern::abi::nexthop::{CLAIMED, CLAIMED_BASE, NextHop};

use super::Node;
use super::refresh::Outcome;
use crate::error::Error;
use crate::flows;

impl Node {
    /// Has the next packet by each of these interfaces ask the kernel for the way again.
    pub(super) fn renew_next_hops(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), Error> {
        if interfaces.iter().all(|&index| index == 0) {
            return Ok(());
        }
        for slot in CLAIMED_BASE..CLAIMED_BASE + CLAIMED {
            let hop = self
                .maps
                .next_hops
                .get(&slot, 0)
                .map_err(Error::map("read", "next_hops"))?;
            if hop.interface == 0 || !interfaces.contains(&hop.interface) {
                continue;
            }
            let hop = NextHop {
                refreshed_s: 0,
                ..hop
            };
            self.maps
                .next_hops
                .set(slot, hop, 0)
                .map_err(Error::map("write to", "next_hops"))?;
        }
        Ok(())
    }

    /// Removes flows whose decisions do not hold any more; returns how many entries that were.
    ///
    /// `settled`: no uplink and no address came back lately.
    pub(super) fn forget_flows(
        &mut self,
        outcome: &Outcome,
        settled: bool,
    ) -> Result<usize, Error> {
        let watch = &self.watch;
        let due = |key: &FlowKey, flow: &Flow| {
            if flow.has(flags::SNAT) {
                return watch.is_over(flow.nat_address.to_ip());
            }
            if flow.has(flags::DNAT) {
                // It goes with its other half.
                return false;
            }
            let (source, destination) = (key.source.to_ip(), key.destination.to_ip());
            if outcome.moved.contains(&source) || outcome.moved.contains(&destination) {
                return true;
            }
            let leaves = flow.arrival() == flags::ARRIVAL_POD
                && !flow.has(flags::REPLY)
                && End::from_raw(flow.to).is_remote();
            // Given to the stack as there was no way out of an uplink.
            leaves && flow.target() == flags::TARGET_HOST && !settled
        };
        flows::remove(&mut self.maps, due)
    }

    /// Removes flows behind addresses that this node has no more, and that others took the place
    /// of.
    pub(super) fn forget_masqueraded(&mut self) -> Result<usize, Error> {
        let watch = &self.watch;
        let due = |_: &FlowKey, flow: &Flow| {
            flow.has(flags::SNAT) && watch.is_over(flow.nat_address.to_ip())
        };
        flows::remove(&mut self.maps, due)
    }
}

//! The settings of a load, out of the configuration.

use datapath_kern::abi::config::{Config as Settings, tunnel, verdicts};

use super::address_or_none;
use crate::config::{
    Config, EarlyFragments, EndpointShare, IdentityFrom, Revoke, Tunnel, Verdicts,
};
use crate::gateway::Gateway;
use crate::probe::Kernel;
use crate::sizes::Sizes;
use crate::uplink::UplinkView;

/// One end has so many parts of the room for fragments at most, one of them.
const SHARES: u32 = 8;

/// The settings of a load.
pub(super) fn of(
    config: &Config,
    kernel: &Kernel,
    gateway: &Gateway,
    uplinks: &[UplinkView],
    sizes: Sizes,
    seed: u32,
) -> Settings {
    Settings {
        host_interface: gateway.index,
        net_interface: gateway.net_index,
        tunnel: match config.tunnel {
            Tunnel::Direct => tunnel::DIRECT,
            Tunnel::Native => tunnel::NATIVE,
        },
        identity_from_vni: u32::from(config.identity_from == IdentityFrom::Vni),
        tcp_loose: u32::from(config.tcp_loose),
        nat_port_min: u32::from(config.nat_ports.first),
        nat_port_max: u32::from(config.nat_ports.last),
        tcp_established_s: config.timeouts.tcp_established_s,
        tcp_pending_s: config.timeouts.tcp_pending_s,
        tcp_closed_s: config.timeouts.tcp_closed_s,
        other_established_s: config.timeouts.other_established_s,
        other_pending_s: config.timeouts.other_pending_s,
        checksum_v6_flags: kernel.checksum_v6_flags(),
        decap_flags: u16::from(kernel.decap_flags),
        seed,
        events_per_s: config.events_per_s,
        verdicts: match config.verdicts {
            Verdicts::None => verdicts::NONE,
            Verdicts::Judged => verdicts::JUDGED,
            Verdicts::All => verdicts::ALL,
        },
        verdicts_per_s: config.verdicts_per_s,
        gateway_v4: address_or_none(config.gateway(true)),
        gateway_v6: address_or_none(config.gateway(false)),
        gateway_mac: gateway.mac,
        uplinks_pass_gso: u16::from(uplinks.iter().all(UplinkView::passes_gso)),
        endpoint_established: EndpointShare::flows(
            config.endpoint_share.established_percent,
            sizes.max_flows,
        ),
        endpoint_begun_per_s: EndpointShare::flows(
            config.endpoint_share.pending_percent,
            sizes.max_pending,
        ),
        fragments_to_stack: u32::from(config.fragments == EarlyFragments::Stack),
        fragments_per_end: config.max_fragments / SHARES,
        revoke_drains: u32::from(config.policy.revoke == Revoke::Drain),
        ..Settings::DEFAULT
    }
}

/// A number that nobody outside knows: the standard library seeds its hash maps with such.
#[allow(clippy::cast_possible_truncation, reason = "half of it is as good")]
pub(super) fn seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("datapath") as u32
}

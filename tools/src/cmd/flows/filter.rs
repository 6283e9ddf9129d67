//! Which flows: the options that `dpctl flows` and `dpctl flows flush` have in common.

use clap::Args;
use datapath_user::{
    EndFilter, FlowFamily, FlowFilter, FlowTableName, FlowVerdict, Protocol, States,
};

/// Which flows.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which flows")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(super) struct Filter {
    /// Those of this pod of the node, at either end
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,

    /// Those that this end began: an address, a prefix, a pod, a peer, world or host, :PORT
    #[arg(long, value_name = "END[:PORT]", value_parser = str::parse::<EndFilter>)]
    from: Option<EndFilter>,

    /// Those that were begun with this end
    #[arg(long, value_name = "END[:PORT]", value_parser = str::parse::<EndFilter>)]
    to: Option<EndFilter>,

    /// Those of this protocol: tcp, udp, icmp, icmpv6, sctp, or the IP protocol's number
    #[arg(long, value_name = "NAME", value_parser = str::parse::<Protocol>)]
    protocol: Option<Protocol>,

    /// Those with this port, or identifier of an echo, at either end
    #[arg(long)]
    port: Option<u16>,

    /// Those in one of these states: syn, unreplied, replied, established, closing, closed,
    /// reset
    #[arg(long, value_name = "STATE[,STATE]", value_parser = str::parse::<States>)]
    state: Option<States>,

    /// Those that are translated
    #[arg(long, conflicts_with = "no_nat")]
    nat: bool,

    /// Those that are not translated
    #[arg(long)]
    no_nat: bool,

    /// Those in this table: established or pending
    #[arg(long, value_parser = str::parse::<FlowTableName>)]
    table: Option<FlowTableName>,

    /// Those of this address family: ipv4 or ipv6
    #[arg(long, value_parser = str::parse::<FlowFamily>)]
    family: Option<FlowFamily>,

    /// Those of IPv4
    #[arg(short = '4', conflicts_with_all = ["family", "v6"])]
    v4: bool,

    /// Those of IPv6
    #[arg(short = '6', conflicts_with = "family")]
    v6: bool,

    /// Those of which policy says this: allow or deny
    #[arg(long, value_parser = str::parse::<FlowVerdict>)]
    verdict: Option<FlowVerdict>,
}

impl Filter {
    pub(super) fn filter(&self) -> FlowFilter {
        let family = match (self.v4, self.v6) {
            (true, _) => Some(FlowFamily::Ipv4),
            (_, true) => Some(FlowFamily::Ipv6),
            _ => self.family,
        };
        let nat = match (self.nat, self.no_nat) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        FlowFilter {
            pod: self.pod.clone(),
            from: self.from.clone(),
            to: self.to.clone(),
            protocol: self.protocol,
            port: self.port,
            state: self.state.clone().unwrap_or_default(),
            nat,
            table: self.table,
            family,
            verdict: self.verdict,
        }
    }
}

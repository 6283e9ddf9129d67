//! `dpctl flows`

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::{Context, Outcome};
use crate::{
    api::FlowView,
    table::{self, numbers, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl flows                        one line for each flow, as it began
  dpctl flows --all                  and the way back, marked <-
  dpctl --node n1 --output json flows | jq 'map(select(.nat))'

A line reads from the side that began the flow to the other. NAT is what that side's address
(snat) or the other's (dnat) is replaced by. EXPIRES is how long the flow lives without another
packet.";

/// Show the connections that the datapath tracks
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flows {
    /// Show the entries of both directions
    #[arg(long)]
    all: bool,
}

impl Flows {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let mut flows = context.client()?.flows()?;
        flows.retain(|flow| self.all || !flow.reply);
        // Both directions of a flow together, the first one first.
        flows.sort_by_cached_key(|flow| {
            let (source, destination) = ends(flow);
            let began = if flow.reply { destination } else { source };
            (flow.protocol.clone(), began, flow.pair, flow.reply)
        });
        context.show(&flows, |flows| rows(flows))
    }
}

/// Source and destination of its packets as they arrive.
fn ends(flow: &FlowView) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(flow.source, flow.source_port),
        SocketAddr::new(flow.destination, flow.destination_port),
    )
}

fn rows(flows: &[FlowView]) -> String {
    let columns = [
        words("PROTO"),
        words("SOURCE"),
        words(""),
        words("DESTINATION"),
        words("NAT"),
        words("STATE"),
        numbers("PACKETS"),
        numbers("BYTES"),
        numbers("EXPIRES"),
    ];
    table::render(
        &columns,
        flows.iter().map(row).collect(),
        "no flow is tracked",
    )
}

fn row(flow: &FlowView) -> Vec<String> {
    let (source, destination) = ends(flow);
    let source = end(source, &flow.from);
    let destination = end(destination, &flow.to);
    let (left, arrow, right) = if flow.reply {
        (destination, "<-", source)
    } else {
        (source, "->", destination)
    };
    let nat = flow.nat.as_ref().map(|nat| {
        let new = SocketAddr::new(nat.address, nat.port);
        format!("{} {}", nat.kind, address(new))
    });
    vec![
        flow.protocol.to_uppercase(),
        left,
        arrow.to_owned(),
        right,
        nat.unwrap_or_default(),
        state(flow),
        flow.packets.to_string(),
        flow.bytes.to_string(),
        table::duration(flow.expires_in_s.into()),
    ]
}

fn state(flow: &FlowView) -> String {
    let mut words = flow.state.clone();
    // The table says it already when it is the usual one.
    if flow.table != "established" && !words.contains(&flow.table) {
        words.push(flow.table.clone());
    }
    if flow.verdict != "allow" {
        words.push(flow.verdict.clone());
    }
    words.join(" ")
}

fn end(at: SocketAddr, name: &str) -> String {
    format!("{} ({name})", address(at))
}

/// Shows an address with its port; port 0 is none.
fn address(at: SocketAddr) -> String {
    match (at.ip(), at.port()) {
        (IpAddr::V6(ip), 0) => ip.to_string(),
        (IpAddr::V4(ip), 0) => ip.to_string(),
        _ => at.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn flows_read_from_who_began_them() {
        insta::assert_snapshot!(rows(&sample::flows()), @"
        PROTO   SOURCE                            DESTINATION               NAT                    STATE                PACKETS   BYTES  EXPIRES
        TCP     10.244.1.2:40000 (web-0)      ->  198.51.100.10:80 (world)  snat 192.0.2.11:40000  replied established       12    3456    2h13m
        TCP     192.0.2.11:40000 (web-0)      <-  198.51.100.10:80 (world)  dnat 10.244.1.2:40000  replied established       10  123456    2h13m
        ICMPV6  [fd00:10:244:1::2]:7 (web-0)  ->  fd00:10:244:2::2 (n2)                            pending deny               1     118      59s
        ");
        insta::assert_snapshot!(rows(&[]), @"no flow is tracked");
    }
}

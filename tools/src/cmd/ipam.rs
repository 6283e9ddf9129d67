//! `dpctl ipam`

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::{Context, Outcome};
use crate::{
    api::Addresses,
    table::{self, list, numbers, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl ipam
  dpctl --node n1 --output json ipam | jq '.leases[].addresses'

COOLING counts addresses that were released a moment ago and are not given again yet.";

/// Show the node's address pools, and who holds what
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Ipam {}

impl Ipam {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let Self {} = self;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        context.show(&context.client()?.addresses()?, |addresses| {
            format!(
                "{}\n{}",
                pools(addresses),
                holders(addresses, now.as_secs())
            )
        })
    }
}

fn pools(addresses: &Addresses) -> String {
    let columns = [
        words("POOL"),
        words("PREFIX"),
        numbers("USABLE"),
        numbers("USED"),
        numbers("RESERVED"),
        numbers("COOLING"),
        numbers("FREE"),
    ];
    let rows = addresses.usage.iter().map(|usage| {
        vec![
            usage.pool.clone(),
            usage.range.to_string(),
            table::count(usage.capacity),
            usage.used.to_string(),
            usage.reserved.to_string(),
            usage.cooling.to_string(),
            table::count(usage.free),
        ]
    });
    table::render(&columns, rows.collect(), "no prefix is configured")
}

fn holders(addresses: &Addresses, now_s: u64) -> String {
    let columns = [words("ADDRESSES"), words("HOLDER"), numbers("SINCE")];
    let reserved = addresses.reservations.iter();
    let reserved = reserved.map(|held| {
        vec![
            held.address.to_string(),
            format!("({})", held.purpose),
            String::new(),
        ]
    });
    let leased = addresses.leases.iter().map(|lease| {
        let since = table::duration(now_s.saturating_sub(lease.created_s));
        vec![list(&lease.addresses), lease.owner.to_string(), since]
    });
    table::render(
        &columns,
        reserved.chain(leased).collect(),
        "no address is held",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_well() {
        let addresses = crate::api::sample::addresses();
        insta::assert_snapshot!(pools(&addresses), @"
        POOL     PREFIX              USABLE  USED  RESERVED  COOLING    FREE
        default  10.244.1.0/24          254     1         1        2     250
        default  fd00:10:244:1::/64  1.8e19     1         1        2  1.8e19
        ");
        insta::assert_snapshot!(holders(&addresses, 1_700_000_133), @"
        ADDRESSES                     HOLDER      SINCE
        10.244.1.1                    (gateway)
        10.244.1.2, fd00:10:244:1::2  web-0/eth0  2m13s
        ");
    }
}

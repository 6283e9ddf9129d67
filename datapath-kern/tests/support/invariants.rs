//! What holds of the tables at any moment, whatever came before.

use datapath_kern::abi::flow::{Flow, FlowKey, state, verdict};
use datapath_kern::env::Table;
use datapath_kern::host::Host;

/// The two halves of a flow stay together, in one of the tables; no two flows have one tuple.
///
/// # Errors
///
/// What does not hold, with the entries.
pub(crate) fn of_flows(host: &Host) -> Result<(), String> {
    for (key, flow) in host.flows.entries() {
        established(host, &key, &flow).map_err(|what| format!("{what}: {key:?} {flow:?}"))?;
    }
    for (key, flow) in host.pending.entries() {
        pending(host, &key, &flow).map_err(|what| format!("{what}: {key:?} {flow:?}"))?;
    }
    Ok(())
}

fn established(host: &Host, key: &FlowKey, flow: &Flow) -> Result<(), &'static str> {
    let partner_key = flow.partner_key(key);
    let partner = host.flows.get(&partner_key);
    let partner = partner.ok_or("alone in the established table")?;
    let checks = [
        (flow.verdict != verdict::NONE, "never judged"),
        (
            partner.pair == flow.pair,
            "no pair with what is its partner",
        ),
        (
            partner.partner_key(&partner_key) == *key,
            "the way back leads elsewhere",
        ),
        (
            partner.state == flow.state,
            "not in the same state as its partner",
        ),
        (
            flow.state & state::ESTABLISHED != 0,
            "established and not proven",
        ),
        (host.pending.get(key).is_none(), "in both tables"),
    ];
    first_wrong(&checks)
}

fn pending(host: &Host, key: &FlowKey, flow: &Flow) -> Result<(), &'static str> {
    let partner_key = flow.partner_key(key);
    // A lone half is one whose partner was evicted; what sits in its place is none of its.
    let partner = host.pending.get(&partner_key);
    let partner = partner.filter(|half| half.pair == flow.pair);
    let checks = [
        (flow.pair != 0, "no pair"),
        (flow.verdict != verdict::NONE, "never judged"),
        (
            flow.state & state::ESTABLISHED == 0,
            "proven and not established",
        ),
        (
            partner.is_none_or(|half| half.partner_key(&partner_key) == *key),
            "the way back leads elsewhere",
        ),
        (
            host.flows
                .get(&partner_key)
                .is_none_or(|half| half.pair != flow.pair),
            "one half in either table",
        ),
    ];
    first_wrong(&checks)
}

fn first_wrong(checks: &[(bool, &'static str)]) -> Result<(), &'static str> {
    let wrong = checks.iter().find(|(holds, _)| !holds);
    wrong.map_or(Ok(()), |(_, what)| Err(what))
}

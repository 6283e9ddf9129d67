//! Flows as they begin, change and end.

use std::io::{self, Write};

use datapath_user::{FlowChange, FlowFilter};
use jiff::tz::TimeZone;

use super::{
    super::watch::line::time,
    Context, Form, Outcome,
    line::{End, Nat, State},
};
use crate::error::Error;

/// Prints changes as they come: a line each, or an object of JSON.
pub(super) fn print(
    context: &Context<'_>,
    filter: &FlowFilter,
    interval_ms: Option<u64>,
) -> anyhow::Result<Outcome> {
    let client = context.client()?;
    let mut changes = client.follow_flows(filter, interval_ms)?.until_signal()?;
    let zone = TimeZone::system();
    let mut out = io::stdout().lock();
    while let Some(change) = changes.next_change() {
        let change = change?;
        let line = match context.form {
            Form::Table => line(&change, &zone),
            Form::Json => serde_json::to_string(&change)?,
        } + "\n";
        // Whoever reads wants to see it now.
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            // Nobody reads it any more (`| head`): that is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Outcome::default());
            }
            outcome => outcome.map_err(Error::os("write", "changes of flows"))?,
        }
    }
    if !changes.is_interrupted() {
        let socket = client.socket().to_owned();
        return Err(Error::Ended { socket }.into());
    }
    Ok(Outcome::default())
}

fn line(change: &FlowChange<'_>, zone: &TimeZone) -> String {
    let FlowChange {
        turn,
        time: at,
        flow,
    } = change;
    let nat = flow.nat.map(|_| format!(" {}", Nat(flow)));
    format!(
        "{}: {:6} {} {} -> {}{} {}, packets {}/{}, bytes {}/{}",
        time(*at, zone),
        turn.word().to_uppercase(),
        flow.protocol.to_string().to_uppercase(),
        End(&flow.source),
        End(&flow.destination),
        nat.unwrap_or_default(),
        State(flow),
        flow.packets,
        flow.reply_packets,
        flow.bytes,
        flow.reply_bytes,
    )
}

#[cfg(test)]
mod tests {
    use datapath_user::FlowTurn;

    use super::*;
    use crate::api::sample;

    #[test]
    fn changes_read_as_conntrack_shows_them() {
        let lines: Vec<_> = [FlowTurn::New, FlowTurn::Update, FlowTurn::End]
            .into_iter()
            .zip(sample::flows())
            .map(|(turn, flow)| {
                let time = "2026-11-21T06:30:00.123456789Z".parse().unwrap();
                line(&FlowChange { turn, time, flow }, &TimeZone::UTC)
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        Nov 21 06:30:00.123: NEW    TCP 10.244.1.2:40000 (web-0) -> 198.51.100.10:80 (world) snat 192.0.2.11:40000 established, packets 12/10, bytes 3456/123456
        Nov 21 06:30:00.123: UPDATE TCP 10.244.1.2:40000 (web-0) -> 198.51.100.10:8443 (world) syn, deny, reply missing, packets 1/0, bytes 74/0
        Nov 21 06:30:00.123: END    ICMPV6 [fd00:10:244:1::2]:7 (web-0) -> fd00:10:244:2::2 (n2) unreplied, packets 1/0, bytes 118/0
        ");
    }
}

//! The flow table tells of a flow what is true.

use std::net::SocketAddr;

use datapath_user::FlowView;

use super::{
    PORT,
    check::{Complaint, Found, Subject, expect},
    patience,
    site::{Cast, NodeView},
};
use crate::{
    family::{Family, Protocol},
    probe::{Options, TcpSession},
    report::Check,
};

/// A masqueraded connection is listed in both directions, with the port that the server sees.
pub(super) fn checks(cast: &Cast<'_, '_>, view: &dyn NodeView, mut tell: impl FnMut(Check)) {
    for family in Family::ALL {
        let Some(outside) = cast.site.outside.addresses.get(family) else {
            continue;
        };
        let subject = Subject::new("flows", "a masqueraded connection is listed both ways")
            .family(family)
            .protocol(Protocol::Tcp);
        tell(subject.check(|| listed(cast, view, SocketAddr::new(outside, PORT))));
    }
}

fn listed(
    cast: &Cast<'_, '_>,
    view: &dyn NodeView,
    server: SocketAddr,
) -> Result<Found, Complaint> {
    let options = Options::default().with_timeout(patience());
    let mut session = TcpSession::connect(cast.pod.host.namespace, server, &options)?;
    session.echo(10_000)?;
    let (client, seen) = (session.local_address()?, session.seen_source());
    let flows = view.flows(cast.node_index)?;
    let find = |source: SocketAddr, destination: SocketAddr| {
        let wanted = |flow: &&FlowView| {
            flow.protocol == "tcp"
                && SocketAddr::new(flow.source, flow.source_port) == source
                && SocketAddr::new(flow.destination, flow.destination_port) == destination
        };
        flows.iter().find(wanted).ok_or_else(|| {
            let others = flows.len();
            Complaint::new(format!(
                "none of {others} flows is from {source} to {destination}"
            ))
        })
    };
    let (there, back) = (find(client, server)?, find(server, seen)?);
    let told = |flow: &FlowView| {
        let nat = flow.nat.as_ref();
        let nat = nat.map(|nat| (nat.kind.clone(), SocketAddr::new(nat.address, nat.port)));
        (flow.table.clone(), flow.reply, nat)
    };
    let true_of = |reply, kind: &str, address| {
        (
            "established".to_owned(),
            reply,
            Some((kind.to_owned(), address)),
        )
    };
    expect("the flow", &true_of(false, "snat", seen), &told(there))?;
    expect("its answers", &true_of(true, "dnat", client), &told(back))?;
    expect("the number of both", &there.pair, &back.pair)?;
    if there.packets < 3 || back.packets < 2 {
        let text = format!("{} packets there and {} back", there.packets, back.packets);
        return Err(Complaint::new(text));
    }
    Ok(Found {
        detail: format!(
            "{client} as {seen}: {} packets there, {} back, among {} entries",
            there.packets,
            back.packets,
            flows.len()
        ),
        actions: 1,
    })
}

//! Flows of real traffic: listed, filtered, followed and flushed. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::net::{SocketAddr, UdpSocket};

use aya::maps::{HashMap, Map, MapData};
use common::{Lab, NODE, OUTSIDE, PATIENCE, ip, pod, pod_addresses, stream::Stream};
use datapath_kern::abi::flow::{Flow, FlowKey, flags};
use datapath_user::{
    Config, Datapath, Error, FlowFilter, FlowFollower, FlowHalf, FlowOrder, FlowPair, FlowSort,
    FlowState, FlowTableName, FlowTurn, NatKind, Protocol,
};

/// TCP flows with these ends, `any` meaning any.
fn tcp(from: &str, to: &str) -> FlowFilter {
    let end = |text: &str| (text != "any").then(|| text.parse().unwrap());
    FlowFilter {
        from: end(from),
        to: end(to),
        protocol: Some(Protocol(6)),
        ..FlowFilter::default()
    }
}

fn list(datapath: &Datapath, filter: &FlowFilter) -> Vec<FlowPair<'static>> {
    let order = FlowOrder {
        sort: Some(FlowSort::Source),
        ..FlowOrder::default()
    };
    datapath.list_flows(filter, order).unwrap().rest().unwrap()
}

/// Numbers of the flows that fit, sorted.
fn pairs(datapath: &Datapath, filter: &FlowFilter) -> Vec<u32> {
    let mut pairs: Vec<_> = list(datapath, filter)
        .iter()
        .map(|flow| flow.pair)
        .collect();
    pairs.sort_unstable();
    pairs
}

fn sorted<const N: usize>(mut pairs: [u32; N]) -> [u32; N] {
    pairs.sort_unstable();
    pairs
}

#[test]
fn flows_are_one_row_each_and_are_found_by_what_is_true_of_them() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec_one) = pod("one", 5);
        let (two, spec_two) = pod("two", 6);
        datapath.add_endpoint(&spec_one).unwrap();
        datapath.add_endpoint(&spec_two).unwrap();
        let outside = ip(OUTSIDE[0]);
        let mut inside = Stream::open(&one, &two, pod_addresses(6)[0]);
        let mut out = Stream::open(&one, &lab.outside, outside);
        let mut out_v6 = Stream::open(&one, &lab.outside, ip(OUTSIDE[1]));
        let mut other = Stream::open(&two, &lab.outside, outside);
        for stream in [&mut inside, &mut out, &mut out_v6, &mut other] {
            stream.echo();
        }
        let halves = datapath.flows().unwrap();
        let [inside, out, out_v6, other] =
            [&inside, &out, &out_v6, &other].map(|stream| stream.pair(&halves));

        let all = list(&datapath, &tcp("any", "any"));
        assert_eq!(all.len(), 4, "{all:#?}");
        for flow in &all {
            assert_eq!((flow.missing, flow.state), (None, FlowState::Established));
            assert_eq!(flow.table, FlowTableName::Established);
            assert!(flow.packets >= 3 && flow.reply_packets >= 2, "{flow:#?}");
            assert!(flow.bytes > 0 && flow.reply_bytes > 0 && flow.expires_in_s > 0);
        }
        let masqueraded = all.iter().find(|flow| flow.pair == out).unwrap();
        assert_eq!(
            (&*masqueraded.source.name, masqueraded.source.identity),
            ("one", 1005)
        );
        assert_eq!(&*masqueraded.destination.name, "world");
        let nat = masqueraded.nat.unwrap();
        assert_eq!((nat.kind, nat.address), (NatKind::Source, ip(NODE[0])));

        let everything = sorted([inside, out, out_v6, other]);
        let of = |change: fn(&mut FlowFilter)| {
            let mut filter = tcp("any", "any");
            change(&mut filter);
            filter
        };
        let source_port = masqueraded.source.port;
        let server_port = masqueraded.destination.port;
        for (filter, expected) in [
            (tcp("any", "any"), &everything[..]),
            (tcp("one", "any"), &sorted([inside, out, out_v6])),
            (tcp("one", "two"), &[inside]),
            (tcp("two", "one"), &[]),
            (tcp("any", "world"), &sorted([out, out_v6, other])),
            (tcp("host", "any"), &[]),
            (tcp("10.244.1.0/24", "192.0.2.0/24"), &sorted([out, other])),
            (tcp("fd00:244:1::/64", "any"), &[out_v6]),
            (
                tcp(&format!("one:{source_port}"), &format!(":{server_port}")),
                &[out],
            ),
            // As the server sees it.
            (
                tcp(
                    &nat.socket().to_string(),
                    &format!("{outside}:{server_port}"),
                ),
                &[out],
            ),
            (
                of(|filter| filter.pod = Some("two".to_owned())),
                &sorted([inside, other]),
            ),
            (of(|filter| filter.nat = Some(false)), &[inside]),
            (of(|filter| filter.family = "ipv6".parse().ok()), &[out_v6]),
            (
                of(|filter| filter.state = "closed,syn".parse().unwrap()),
                &[],
            ),
            (
                of(|filter| filter.table = Some(FlowTableName::Established)),
                &everything,
            ),
            (of(|filter| filter.protocol = Some(Protocol(17))), &[]),
        ] {
            let found = pairs(&datapath, &filter);
            assert_eq!(found, expected, "{filter:?}");
            let list = datapath.list_flows(&filter, FlowOrder::default()).unwrap();
            assert_eq!(list.count().unwrap(), expected.len());
        }
        datapath.close().unwrap();
    });
}

#[test]
fn flows_come_in_the_order_asked_for_and_nonsense_is_refused() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        let _streams = OUTSIDE.map(|outside| {
            let mut stream = Stream::open(&one, &lab.outside, ip(outside));
            stream.echo();
            stream
        });
        let order = |reverse, limit| FlowOrder {
            sort: Some(FlowSort::Destination),
            reverse,
            limit: Some(limit),
        };
        let addresses = |order| -> Vec<_> {
            let list = datapath.list_flows(&tcp("any", "any"), order).unwrap();
            let flows = list.rest().unwrap();
            flows
                .into_iter()
                .map(|flow| flow.destination.address)
                .collect()
        };
        assert_eq!(addresses(order(false, 1)), [ip(OUTSIDE[0])]);
        assert_eq!(addresses(order(true, 1)), [ip(OUTSIDE[1])]);
        assert_eq!(addresses(order(false, 9)), OUTSIDE.map(ip));

        let refused = |filter: FlowFilter| {
            let refused = datapath.list_flows(&filter, FlowOrder::default());
            refused.unwrap_err().to_string()
        };
        let said = refused(tcp("three", "any"));
        assert!(
            said.contains("\"three\"") && said.contains("dpctl endpoint list"),
            "{said}"
        );
        let said = refused(FlowFilter {
            pod: Some("world".to_owned()),
            ..FlowFilter::default()
        });
        assert!(said.starts_with("no endpoint \"world\""), "{said}");
        datapath.close().unwrap();
    });
}

#[test]
fn a_flush_cuts_what_fits_and_nothing_else() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec_one) = pod("one", 5);
        let (two, spec_two) = pod("two", 6);
        datapath.add_endpoint(&spec_one).unwrap();
        datapath.add_endpoint(&spec_two).unwrap();
        let outside = ip(OUTSIDE[0]);
        let mut cut = Stream::open(&one, &lab.outside, outside);
        let mut inside = Stream::open(&one, &two, pod_addresses(6)[0]);
        let mut other = Stream::open(&two, &lab.outside, outside);
        for stream in [&mut cut, &mut inside, &mut other] {
            stream.echo();
        }
        let before = datapath.flows().unwrap();
        let [cut_pair, inside_pair, other_pair] =
            [&cut, &inside, &other].map(|stream| stream.pair(&before));

        let filter = tcp("one", "world");
        let report = datapath.flush_dry(&filter).unwrap();
        assert_eq!((report.flows, report.removed), (1, 0), "{report:?}");
        assert!(report.examined >= 6);
        assert_eq!(pairs(&datapath, &filter), [cut_pair]);
        let report = datapath.flush(&filter).unwrap();
        assert_eq!((report.flows, report.removed), (1, 2), "{report:?}");
        let after = datapath.flows().unwrap();
        assert!(after.iter().all(|half| half.pair != cut_pair), "{after:#?}");
        assert_eq!(
            pairs(&datapath, &tcp("any", "any")),
            sorted([inside_pair, other_pair])
        );
        let again = datapath.flush(&filter).unwrap();
        assert_eq!((again.flows, again.removed), (0, 0));

        // All go on, the one that was cut as a new flow.
        for stream in [&mut cut, &mut inside, &mut other] {
            stream.echo();
        }
        let after = datapath.flows().unwrap();
        assert_eq!(inside.pair(&after), inside_pair);
        assert_eq!(other.pair(&after), other_pair);
        let renewed = pairs(&datapath, &filter);
        assert!(renewed.len() == 1 && renewed != [cut_pair], "{renewed:?}");

        let report = datapath.flush(&FlowFilter::default()).unwrap();
        assert!(report.flows >= 3 && report.removed >= 6, "{report:?}");
        assert!(datapath.flows().unwrap().is_empty());
        let missing = datapath.flush(&tcp("nobody", "any"));
        assert!(
            matches!(missing, Err(Error::NoSuchEnd { .. })),
            "{missing:?}"
        );
        datapath.close().unwrap();
    });
}

#[test]
fn who_follows_sees_flows_begin_change_and_end() {
    /// Turn, state, and packets of both directions.
    type Seen = (FlowTurn, FlowState, u64, u64);
    fn look(follower: &mut FlowFollower) -> Vec<Seen> {
        let mut seen = Vec::new();
        let look = follower.look(&mut |change| {
            let flow = &change.flow;
            assert_eq!(
                (&*flow.source.name, &*flow.destination.name),
                ("one", "two")
            );
            seen.push((change.turn, flow.state, flow.packets, flow.reply_packets));
        });
        look.unwrap();
        seen
    }

    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec_one) = pod("one", 5);
        let (two, spec_two) = pod("two", 6);
        datapath.add_endpoint(&spec_one).unwrap();
        datapath.add_endpoint(&spec_two).unwrap();
        let bind = |address| move || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
        let near = one.run(bind(pod_addresses(5)[0]));
        let far = two.run(bind(pod_addresses(6)[0]));
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = [0; 8];
        // A connection of another protocol, and a flow that is there already.
        let mut other = Stream::open(&one, &two, pod_addresses(6)[0]);
        let early = one.run(bind(pod_addresses(5)[0]));
        early.send_to(b"early", far.local_addr().unwrap()).unwrap();
        far.recv_from(&mut heard).unwrap();

        let udp = FlowFilter {
            protocol: Some(Protocol(17)),
            ..FlowFilter::default()
        };
        let mut follower = datapath.follow_flows(&udp).unwrap();
        let mut only_ends = datapath
            .follow_flows(&FlowFilter {
                state: "established".parse().unwrap(),
                ..udp.clone()
            })
            .unwrap();
        assert_eq!(look(&mut follower), []);
        near.send_to(b"hello", far.local_addr().unwrap()).unwrap();
        far.recv_from(&mut heard).unwrap();
        other.echo();
        assert_eq!(
            look(&mut follower),
            [(FlowTurn::New, FlowState::Unreplied, 1, 0)]
        );
        assert_eq!(look(&mut only_ends), []);
        far.send_to(b"hello", near.local_addr().unwrap()).unwrap();
        near.recv_from(&mut heard).unwrap();
        assert_eq!(
            look(&mut follower),
            [(FlowTurn::Update, FlowState::Replied, 1, 1)]
        );
        near.send_to(b"again", far.local_addr().unwrap()).unwrap();
        far.recv_from(&mut heard).unwrap();
        let established = (FlowTurn::Update, FlowState::Established, 2, 1);
        assert_eq!(look(&mut follower), [established]);
        assert_eq!(look(&mut only_ends), [established]);
        assert_eq!(look(&mut follower), [], "nothing has changed");

        // Also when the pods go with the flow.
        datapath.remove_endpoint("one").unwrap();
        let mut ends = look(&mut follower);
        ends.sort_unstable();
        let ended = |state, packets, replies| (FlowTurn::End, state, packets, replies);
        assert_eq!(
            ends,
            [
                ended(FlowState::Unreplied, 1, 0),
                ended(FlowState::Established, 2, 1)
            ]
        );
        datapath.close().unwrap();
        assert!(
            follower.look(&mut |_| ()).is_err(),
            "there is nothing to follow"
        );
    });
}

#[test]
fn a_half_that_is_alone_is_shown_as_such() {
    Lab::run(|lab| {
        let config = lab.config();
        let maps = config.bpffs.join("maps");
        let datapath = Datapath::open(Config { ..config }).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        let mut stream = Stream::open(&one, &lab.outside, ip(OUTSIDE[0]));
        stream.echo();
        let whole = list(&datapath, &tcp("one", "any")).remove(0);

        let map = MapData::from_pin(maps.join("flows")).unwrap();
        let map = Map::from_map_data(map).unwrap();
        let mut table = HashMap::<_, FlowKey, Flow>::try_from(map).unwrap();
        let entries: Vec<_> = table.iter().map(Result::unwrap).collect();
        let reply = entries.iter().find(|(_, half)| half.has(flags::REPLY));
        let (key, half) = reply.unwrap();
        table.remove(key).unwrap();
        let lonely = list(&datapath, &tcp("one", "any"));
        assert_eq!(lonely.len(), 1);
        assert_eq!(
            (lonely[0].missing, lonely[0].reply_packets),
            (Some(FlowHalf::Reply), 0)
        );
        assert_eq!(lonely[0].nat, whole.nat);

        table.insert(key, half, 0).unwrap();
        table.remove(&half.partner_key(key)).unwrap();
        let lonely = list(&datapath, &tcp("one", "any"));
        assert_eq!(lonely[0].missing, Some(FlowHalf::Original));
        assert_eq!(lonely[0].source.socket(), whole.source.socket());
        assert_eq!(lonely[0].nat, whole.nat);
        // What is left of it can be flushed, too.
        let report = datapath.flush(&tcp("one", "world")).unwrap();
        assert_eq!((report.flows, report.removed), (1, 1));
        datapath.close().unwrap();
    });
}

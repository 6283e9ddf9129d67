//! What is entered, amended and removed, in real maps.

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, MapData};
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::policy::{PortKey, PortVerdict};

use super::super::store::Room;
use super::*;
use crate::policy::{ClassEntry, DirectionRules};

const ROOM: Room = Room {
    peers: 16,
    ports: 8,
};

/// The maps, as small ones of the kernel's. As root.
struct Kernel {
    peers: HashMap<MapData, PeerKey, u32>,
    ports: LpmTrie<MapData, PortKey, PortVerdict>,
}

impl Kernel {
    fn new() -> Self {
        Self {
            peers: HashMap::create(ROOM.peers, 0).unwrap(),
            ports: LpmTrie::create(ROOM.ports, 1).unwrap(),
        }
    }

    fn store(&mut self) -> Store<'_> {
        Store {
            peers: &mut self.peers,
            ports: &mut self.ports,
            room: ROOM,
        }
    }

    fn counts(&mut self) -> (usize, usize) {
        let mut store = self.store();
        (store.peers().unwrap().len(), store.ports().unwrap().len())
    }
}

fn class(ports: &[u16]) -> Arc<Class> {
    let entry = |&port: &u16| ClassEntry {
        prefix_bits: PortKey::PORT_BITS,
        protocol: 6,
        port,
        verdict: PortVerdict {
            rule_id: 7,
            verdict: verdict::ALLOW,
            ..PortVerdict::default()
        },
    };
    Arc::new(Class {
        entries: ports.iter().map(entry).collect(),
    })
}

fn ingress(any: Option<&Arc<Class>>, peers: &[(u32, &Arc<Class>)]) -> Arc<RuleSet> {
    let peers = peers.iter();
    Arc::new(RuleSet {
        ingress: Some(DirectionRules {
            any: any.cloned(),
            peers: peers
                .map(|(peer, class)| (*peer, Arc::clone(class)))
                .collect(),
        }),
        egress: None,
    })
}

#[test]
fn what_says_the_same_is_there_once_and_goes_with_the_last_user() {
    let (mut kernel, mut writer) = (Kernel::new(), Writer::default());
    let (web, dns) = (class(&[80, 443]), class(&[53]));
    let one = ingress(Some(&dns), &[(300, &web), (301, &web)]);
    let number = writer.enter(&mut kernel.store(), &one).unwrap();
    let same = ingress(Some(&dns), &[(300, &web), (301, &web)]);
    assert_eq!(writer.enter(&mut kernel.store(), &same).unwrap(), number);
    assert_eq!(kernel.counts(), (3, 3));
    let other = writer.enter(&mut kernel.store(), &ingress(None, &[(300, &web)]));
    assert_ne!(other.unwrap(), number);
    assert_eq!(kernel.counts(), (4, 3), "the class is there");
    let closed = ingress(None, &[]);
    assert_eq!(writer.enter(&mut kernel.store(), &closed).unwrap(), 0);

    writer.leave(number);
    writer.leave(number);
    let now = Instant::now();
    assert_eq!(
        writer.reap(&mut kernel.store(), now).unwrap(),
        0,
        "too early"
    );
    assert_eq!(kernel.counts(), (4, 3));
    assert_eq!(writer.reap(&mut kernel.store(), now + GRACE).unwrap(), 4);
    assert_eq!(kernel.counts(), (1, 2));
    assert_eq!(writer.used(), Used { peers: 1, ports: 2 });
}

#[test]
fn a_set_that_does_not_fit_leaves_nothing() {
    let (mut kernel, mut writer) = (Kernel::new(), Writer::default());
    let web = class(&[80, 443]);
    let first = writer.enter(&mut kernel.store(), &ingress(None, &[(300, &web)]));
    first.unwrap();
    let many: Vec<_> = (400..416).map(|peer| (peer, &web)).collect();
    let error = writer
        .enter(&mut kernel.store(), &ingress(None, &many))
        .unwrap_err();
    assert!(error.to_string().contains("policy_peers"), "{error}");
    let wide = class(&[1, 2, 3, 4, 5, 6, 7]);
    let error = writer
        .enter(&mut kernel.store(), &ingress(Some(&wide), &[]))
        .unwrap_err();
    assert!(error.to_string().contains("policy_ports"), "{error}");
    assert_eq!(kernel.counts(), (1, 2));
    assert_eq!(writer.used(), Used { peers: 1, ports: 2 });
}

#[test]
fn room_is_made_of_what_is_retired() {
    let (mut kernel, mut writer) = (Kernel::new(), Writer::default());
    for round in 0..4_u32 {
        let web = class(&[80, 443, 8080]);
        let peers: Vec<_> = (0..10)
            .map(|peer| (300 + 10 * round + peer, &web))
            .collect();
        let number = writer
            .enter(&mut kernel.store(), &ingress(None, &peers))
            .unwrap();
        assert_eq!(number, round + 1, "numbers are not used again at once");
        writer.leave(number);
    }
    assert_eq!(kernel.counts(), (10, 3));
}

#[test]
fn identities_that_nobody_has_come_and_go_in_place() {
    let (mut kernel, mut writer) = (Kernel::new(), Writer::default());
    let (web, dns) = (class(&[80]), class(&[53]));
    let before = ingress(Some(&dns), &[(300, &web)]);
    let number = writer.enter(&mut kernel.store(), &before).unwrap();
    let grown = ingress(Some(&dns), &[(300, &web), (301, &dns)]);
    let fresh = BTreeSet::from([301]);
    assert!(
        writer
            .amend(&mut kernel.store(), number, &grown, &fresh)
            .unwrap()
    );
    assert_eq!(kernel.counts(), (3, 2));
    assert_eq!(writer.rules(number), Some(&grown));
    assert!(
        writer
            .amend(&mut kernel.store(), number, &before, &fresh)
            .unwrap()
    );
    assert_eq!(kernel.counts(), (2, 2));
    // Who is there already is not changed in place, nor is what counts for all others.
    for other in [
        ingress(Some(&dns), &[(300, &dns)]),
        ingress(Some(&web), &[(300, &web)]),
        ingress(Some(&dns), &[(300, &web), (302, &dns)]),
        ingress(Some(&dns), &[]),
    ] {
        assert!(
            !writer
                .amend(&mut kernel.store(), number, &other, &fresh)
                .unwrap()
        );
    }
    assert_eq!(kernel.counts(), (2, 2));
}

#[test]
fn numbers_go_round_past_those_in_use() {
    let mut numbers = Numbers::default();
    numbers.known(BTreeSet::from([1, 3]));
    assert_eq!((numbers.take(5), numbers.take(5)), (4, 5));
    assert_eq!(numbers.take(5), 2);
    numbers.give_back(4);
    assert_eq!(numbers.take(5), 4);
}

#[test]
fn what_an_earlier_process_left_is_found_and_goes_when_it_is_disowned() {
    let (mut kernel, mut writer) = (Kernel::new(), Writer::default());
    let web = class(&[80]);
    let set = ingress(None, &[(300, &web), (301, &web)]);
    let number = writer.enter(&mut kernel.store(), &set).unwrap();
    let mut next = Writer::default();
    let leftover = next.adopt(&mut kernel.store()).unwrap();
    assert!(!leftover.is_empty());
    let again = next.enter(&mut kernel.store(), &set).unwrap();
    assert!(again > number);
    assert_eq!(kernel.counts(), (4, 2));
    next.disown(leftover);
    next.reap(&mut kernel.store(), Instant::now() + GRACE)
        .unwrap();
    assert_eq!(kernel.counts(), (2, 1));
    assert_eq!(next.used(), Used { peers: 2, ports: 1 });
}

//! Which address is given to whom, and when it is refused.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use common::{Bench, ip, owner};
use datapath_ipam::{Families, Family, Ipam, IpamError, Lease, PoolUsage, Reservation};
use rstest::rstest;

fn take(ipam: &Ipam, number: usize, families: Families) -> Lease {
    ipam.allocate("p", &owner(number), families).unwrap()
}

fn take_one(ipam: &Ipam, number: usize) -> IpAddr {
    take(ipam, number, Families::OfPool).addresses[0]
}

/// `(used, reserved, cooling, free)` of each range.
fn figures(ipam: &Ipam) -> Vec<(u64, u64, u64, u128)> {
    let figures = |usage: PoolUsage| (usage.used, usage.reserved, usage.cooling, usage.free);
    ipam.usage().unwrap().into_iter().map(figures).collect()
}

#[rstest]
#[case("10.0.0.0/24", 254)]
#[case("10.0.0.0/30", 2)]
#[case("10.0.0.0/31", 2)]
#[case("10.0.0.9/32", 1)]
#[case("fd00::/120", 254)]
#[case("fd00::/127", 2)]
#[case("fd00::9/128", 1)]
fn a_range_gives_exactly_its_capacity(#[case] range: &str, #[case] capacity: usize) {
    let bench = Bench::new();
    let ipam = bench.open(&[range]);
    let given: BTreeSet<_> = (0..capacity).map(|n| take_one(&ipam, n)).collect();
    assert_eq!(given.len(), capacity);
    assert_eq!(figures(&ipam), [(capacity as u64, 0, 0, 0)]);
    assert_eq!(ipam.usage().unwrap()[0].capacity, capacity as u128);
    let refused = ipam.allocate("p", &owner(capacity), Families::OfPool);
    assert!(
        matches!(&refused, Err(IpamError::Exhausted { used, cooling: 0, next_free_in_s: None, .. })
            if *used == capacity as u64),
        "{refused:?}"
    );
}

#[test]
fn a_huge_range_costs_what_a_small_one_does() {
    let bench = Bench::new();
    let ipam = bench.open(&["fd00::/16"]);
    assert_eq!(take_one(&ipam, 0), ip("fd00::1"));
    ipam.allocate_specific("p", &owner(1), &[ip("fd00:ffff::1")])
        .unwrap();
    assert_eq!(figures(&ipam), [(2, 0, 0, (1 << 112) - 4)]);
}

#[test]
fn addresses_go_round_and_the_place_is_kept_over_a_restart() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/29"]);
    assert_eq!(take_one(&ipam, 1), ip("10.0.0.1"));
    assert_eq!(take_one(&ipam, 2), ip("10.0.0.2"));
    ipam.release(&owner(1)).unwrap();
    bench.clock.advance(60);
    // 10.0.0.1 is free again, but it is not its turn.
    assert_eq!(take_one(&ipam, 3), ip("10.0.0.3"));
    drop(ipam);
    let ipam = bench.open(&["10.0.0.0/29"]);
    assert_eq!(take_one(&ipam, 4), ip("10.0.0.4"));
    assert_eq!(take_one(&ipam, 5), ip("10.0.0.5"));
    assert_eq!(take_one(&ipam, 6), ip("10.0.0.6"));
    assert_eq!(take_one(&ipam, 7), ip("10.0.0.1"));
}

#[test]
fn ranges_are_used_up_in_the_order_given() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.9.0.0/31", "fd00::/64", "10.1.0.0/30"]);
    let v4: Vec<_> = (0..4)
        .map(|n| take(&ipam, n, Families::V4).addresses[0].to_string())
        .collect();
    assert_eq!(v4, ["10.9.0.0", "10.9.0.1", "10.1.0.1", "10.1.0.2"]);
}

#[rstest]
#[case(Families::V4, &["10.0.0.1"])]
#[case(Families::V6, &["fd00::1"])]
#[case(Families::Dual, &["10.0.0.1", "fd00::1"])]
#[case(Families::OfPool, &["10.0.0.1", "fd00::1"])]
fn a_lease_has_the_families_asked_for(#[case] families: Families, #[case] expected: &[&str]) {
    let bench = Bench::new();
    let ipam = bench.open(&["fd00::/64", "10.0.0.0/24"]);
    let lease = take(&ipam, 1, families);
    let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
    assert_eq!(lease.addresses, expected);
    assert_eq!((lease.pool.as_str(), &lease.owner), ("p", &owner(1)));
    assert_eq!(
        (lease.boot_id.as_str(), lease.created_s),
        ("boot-1", 1_000_000)
    );
    for family in [Family::V4, Family::V6] {
        let of_family = expected.iter().find(|a| Family::of(**a) == family).copied();
        assert_eq!(lease.address(family), of_family);
    }
    assert_eq!(ipam.lease(&owner(1)).unwrap(), Some(lease));
}

#[test]
fn a_family_that_the_pool_lacks_is_refused() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/24"]);
    for families in [Families::V6, Families::Dual] {
        let refused = ipam.allocate("p", &owner(1), families).unwrap_err();
        assert!(matches!(
            refused,
            IpamError::NoSuchFamily {
                family: Family::V6,
                ..
            }
        ));
    }
    assert_eq!(figures(&ipam), [(0, 0, 0, 254)]);
}

#[test]
fn without_an_ipv4_address_a_dual_stack_request_takes_no_ipv6_address_either() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/31", "fd00::/64"]);
    take(&ipam, 1, Families::Dual);
    take(&ipam, 2, Families::V4);
    let before = ipam.usage().unwrap();
    let refused = ipam.allocate("p", &owner(3), Families::Dual).unwrap_err();
    assert!(matches!(
        refused,
        IpamError::Exhausted {
            family: Family::V4,
            used: 2,
            ..
        }
    ));
    assert_eq!(ipam.usage().unwrap(), before);
    assert_eq!(ipam.lease(&owner(3)).unwrap(), None);
    // Nor has the IPv6 range moved on.
    assert_eq!(take(&ipam, 4, Families::V6).addresses, [ip("fd00::2")]);
}

#[test]
fn a_second_allocation_returns_the_lease_that_is_there() {
    let bench = Bench::new();
    let ipam = Ipam::open(
        bench.path(),
        bench.options(&[("p", &["10.0.0.0/24"]), ("q", &["10.0.1.0/24"])]),
    )
    .unwrap();
    let first = take(&ipam, 1, Families::V4);
    let again = [
        ipam.allocate("p", &owner(1), Families::V4),
        ipam.allocate("q", &owner(1), Families::V4),
        ipam.allocate_specific("p", &owner(1), &first.addresses),
    ];
    for again in again {
        let Err(IpamError::AlreadyAllocated { lease }) = again else {
            panic!("{again:?}");
        };
        assert_eq!(*lease, first);
    }
    // Another interface of the same container is another owner.
    let other = datapath_ipam::Owner::new("c1", "net1").unwrap();
    ipam.allocate("p", &other, Families::V4).unwrap();
    assert_eq!(ipam.leases().unwrap().len(), 2);
}

#[test]
fn released_addresses_rest_and_the_refusal_says_how_long() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/30"]);
    take_one(&ipam, 1);
    take_one(&ipam, 2);
    let lease = ipam.lease(&owner(1)).unwrap();
    assert_eq!(ipam.release(&owner(1)).unwrap(), lease);
    assert_eq!(ipam.release(&owner(1)).unwrap(), None);
    bench.clock.advance(20);
    ipam.release(&owner(2)).unwrap();
    assert_eq!(figures(&ipam), [(0, 0, 2, 0)]);

    bench.clock.advance(10);
    let refused = ipam.allocate("p", &owner(3), Families::V4).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pool `p` has no free IPv4 address: 0 leased, 0 reserved, 2 cooling down, the next of \
         them free in 30 s; add a range to the pool or remove pods"
    );
    bench.clock.advance(29);
    assert!(ipam.allocate("p", &owner(3), Families::V4).is_err());
    bench.clock.advance(1);
    assert_eq!(figures(&ipam), [(0, 0, 1, 1)]);
    assert_eq!(take_one(&ipam, 3), ip("10.0.0.1"));
    assert_eq!(figures(&ipam), [(1, 0, 1, 0)]);
}

#[test]
fn a_rest_outlives_the_process() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.9/32"]);
    take_one(&ipam, 1);
    ipam.release(&owner(1)).unwrap();
    drop(ipam);
    let ipam = bench.open(&["10.0.0.9/32"]);
    assert!(ipam.allocate("p", &owner(2), Families::V4).is_err());
    bench.clock.advance(60);
    assert_eq!(take_one(&ipam, 2), ip("10.0.0.9"));
}

#[test]
fn a_clock_set_back_lengthens_a_rest_by_its_own_length_at_most() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.9/32"]);
    take_one(&ipam, 1);
    ipam.release(&owner(1)).unwrap();
    bench.clock.set(1_000);
    assert_eq!(figures(&ipam), [(0, 0, 1, 0)]);
    // Refusals alone must not start the rest over again and again.
    for left in (1..=60).rev() {
        let refused = ipam.allocate("p", &owner(2), Families::V4);
        assert!(
            matches!(refused, Err(IpamError::Exhausted { next_free_in_s: Some(next), .. })
                if next == left),
            "{left}: {refused:?}"
        );
        bench.clock.advance(1);
    }
    assert_eq!(take_one(&ipam, 2), ip("10.0.0.9"));
}

#[test]
fn without_a_cooldown_an_address_is_free_at_once_even_after_a_clock_set_back() {
    let bench = Bench::new();
    let mut options = bench.options(&[("p", &["10.0.0.9/32"])]);
    options.cooldown = std::time::Duration::ZERO;
    let ipam = Ipam::open(bench.path(), options).unwrap();
    for n in 0..3 {
        take_one(&ipam, n);
        ipam.release(&owner(n)).unwrap();
        assert_eq!(figures(&ipam), [(0, 0, 0, 1)]);
        bench.clock.set(1_000 - n as u64);
    }
}

#[test]
fn specific_addresses_are_given_or_refused_with_the_reason() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/24", "fd00::/64"]);
    let ask = |number, addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
        ipam.allocate_specific("p", &owner(number), &addresses)
    };
    let lease = ask(1, &["fd00::5", "10.0.0.5"]).unwrap();
    assert_eq!(lease.addresses, [ip("10.0.0.5"), ip("fd00::5")]);
    ipam.reserve("p", ip("10.0.0.1"), "gateway").unwrap();

    for outside in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::", "fd01::1"] {
        let refused = ask(2, &[outside]);
        assert!(
            matches!(&refused, Err(IpamError::NotInPool { address, .. })
                if *address == ip(outside)),
            "{refused:?}"
        );
    }
    assert!(matches!(ask(2, &["10.0.0.5"]),
        Err(IpamError::InUse { owner: holder, .. }) if holder == owner(1)));
    assert!(matches!(ask(2, &["fd00::6", "10.0.0.1"]),
        Err(IpamError::Reserved { purpose, .. }) if purpose == "gateway"));
    assert!(matches!(
        ask(2, &[]),
        Err(IpamError::RequestShape { count: 0, .. })
    ));
    assert!(matches!(
        ask(2, &["10.0.0.8", "10.0.0.9"]),
        Err(IpamError::RequestShape {
            family: Family::V4,
            count: 2
        })
    ));
    // Both or neither: the free one of a refused pair is still free.
    assert_eq!(ask(3, &["fd00::6"]).unwrap().addresses, [ip("fd00::6")]);
    assert!(matches!(
        ipam.allocate_specific("q", &owner(9), &[ip("10.0.0.9")]),
        Err(IpamError::UnknownPool { .. })
    ));
    // The round starts where it would have: requests do not move it.
    assert_eq!(take(&ipam, 4, Families::V4).addresses, [ip("10.0.0.2")]);
}

#[test]
fn an_address_at_rest_goes_back_to_its_last_owner_only() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/24"]);
    ipam.allocate_specific("p", &owner(1), &[ip("10.0.0.5")])
        .unwrap();
    ipam.release(&owner(1)).unwrap();
    bench.clock.advance(25);
    assert!(matches!(
        ipam.allocate_specific("p", &owner(2), &[ip("10.0.0.5")]),
        Err(IpamError::CoolingDown { free_in_s: 35, .. })
    ));
    ipam.allocate_specific("p", &owner(1), &[ip("10.0.0.5")])
        .unwrap();
    // The rest that was cut short must not end the lease.
    bench.clock.advance(100);
    assert!(matches!(
        ipam.allocate_specific("p", &owner(2), &[ip("10.0.0.5")]),
        Err(IpamError::InUse { .. })
    ));
    assert_eq!(figures(&ipam), [(1, 0, 0, 253)]);
}

#[test]
fn reservations_are_durable_idempotent_and_in_nobodys_way_by_accident() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/29", "fd00::/64"]);
    ipam.reserve("p", ip("fd00::1"), "gateway").unwrap();
    ipam.reserve("p", ip("10.0.0.1"), "gateway").unwrap();
    ipam.reserve("p", ip("10.0.0.1"), "gateway").unwrap();
    assert!(matches!(
        ipam.reserve("p", ip("10.0.0.1"), "health"),
        Err(IpamError::Reserved { purpose, .. }) if purpose == "gateway"
    ));
    assert_eq!(take(&ipam, 1, Families::V4).addresses, [ip("10.0.0.2")]);
    assert!(matches!(
        ipam.reserve("p", ip("10.0.0.2"), "health"),
        Err(IpamError::InUse { .. })
    ));
    for (address, purpose) in [("10.0.0.0", "x"), ("10.0.0.7", "x"), ("10.1.0.1", "x")] {
        assert!(matches!(
            ipam.reserve("p", ip(address), purpose),
            Err(IpamError::NotInPool { .. })
        ));
    }
    for purpose in ["", "a\nb", &"a".repeat(256)] {
        assert!(matches!(
            ipam.reserve("p", ip("10.0.0.3"), purpose),
            Err(IpamError::InvalidName { .. })
        ));
    }
    assert_eq!(figures(&ipam)[0], (1, 1, 0, 4));
    drop(ipam);

    let ipam = bench.open(&["10.0.0.0/29", "fd00::/64"]);
    let gateway = |address| Reservation {
        pool: "p".to_owned(),
        address: ip(address),
        purpose: "gateway".to_owned(),
    };
    assert_eq!(
        ipam.reservations().unwrap(),
        [gateway("10.0.0.1"), gateway("fd00::1")]
    );
    assert!(!ipam.unreserve("p", ip("10.0.0.2")).unwrap());
    assert!(ipam.unreserve("p", ip("10.0.0.1")).unwrap());
    assert!(!ipam.unreserve("p", ip("10.0.0.1")).unwrap());
    assert_eq!(figures(&ipam)[0], (1, 0, 1, 4));
    // The node may have it back at once, a pod may not.
    assert!(matches!(
        ipam.allocate_specific("p", &owner(2), &[ip("10.0.0.1")]),
        Err(IpamError::CoolingDown { .. })
    ));
    ipam.reserve("p", ip("10.0.0.1"), "health").unwrap();
    bench.clock.advance(100);
    assert_eq!(figures(&ipam)[0], (1, 1, 0, 4));
}

#[test]
fn reconcile_releases_those_who_are_gone_and_no_others() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/24", "fd00::/64"]);
    for n in 0..4 {
        take(&ipam, n, Families::Dual);
    }
    assert_eq!(ipam.reconcile(|_| true).unwrap(), []);
    let gone = ipam
        .reconcile(|lease| {
            // The callback may use the object, even to release what it is asked about.
            if lease.owner == owner(2) {
                ipam.release(&owner(2)).unwrap();
            }
            ![owner(1), owner(2)].contains(&lease.owner)
        })
        .unwrap();
    let owners: Vec<_> = gone.into_iter().map(|lease| lease.owner).collect();
    assert_eq!(owners, [owner(1)]);
    assert_eq!(figures(&ipam)[0], (2, 0, 2, 250));
    let left: Vec<_> = ipam
        .leases()
        .unwrap()
        .into_iter()
        .map(|l| l.owner)
        .collect();
    assert_eq!(left, [owner(0), owner(3)]);
}

#[test]
fn after_a_reboot_the_leases_of_the_boot_before_can_be_told_apart() {
    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/24"]);
    take_one(&ipam, 1);
    drop(ipam);
    let mut options = bench.options(&[("p", &["10.0.0.0/24"])]);
    options.boot_id = Some("boot-2".to_owned());
    let ipam = Ipam::open(bench.path(), options).unwrap();
    take_one(&ipam, 2);
    let gone = ipam
        .reconcile(|lease| lease.boot_id == ipam.boot_id())
        .unwrap();
    assert_eq!(gone.len(), 1);
    assert_eq!(
        (&gone[0].owner, gone[0].boot_id.as_str()),
        (&owner(1), "boot-1")
    );
}

#[test]
fn threads_share_one_store_without_sharing_an_address() {
    fn shareable<T: Send + Sync>(_: &T) {}

    let bench = Bench::new();
    let ipam = bench.open(&["10.0.0.0/26"]);
    shareable(&ipam);
    let given: Vec<IpAddr> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let ipam = &ipam;
                scope.spawn(move || {
                    let numbers = worker * 15..worker * 15 + 15;
                    numbers.map(|n| take_one(ipam, n)).collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    assert_eq!(given.len(), 60);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(figures(&ipam), [(60, 0, 0, 2)]);
}

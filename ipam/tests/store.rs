//! The file: who may open it, what is refused, and how the configuration may change.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process;

use common::{Bench, ip, owner};
use datapath_ipam::{Families, Holder, Inconsistency, Ipam, IpamError, Options, PoolSpec};
use redb::{Database, TableDefinition};
use rstest::rstest;

const V4: &str = "10.0.0.0/24";

/// A store with owner 1 on 10.0.0.2 and `fd00::1`, 10.0.0.1 reserved, and 10.0.0.3 cooling down.
fn furnished() -> Bench {
    let bench = Bench::new();
    let ipam = bench.open(&[V4, "fd00::/64"]);
    ipam.reserve("p", ip("10.0.0.1"), "gateway").unwrap();
    ipam.allocate("p", &owner(1), Families::Dual).unwrap();
    ipam.allocate("p", &owner(2), Families::V4).unwrap();
    ipam.release(&owner(2)).unwrap();
    drop(ipam);
    bench
}

/// Opens the file with other means and writes one value into it.
fn tamper<K: redb::Key + 'static, V: redb::Value + 'static>(
    path: &Path,
    table: &str,
    key: K::SelfType<'_>,
    value: Option<V::SelfType<'_>>,
) {
    let db = Database::open(path).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let definition: TableDefinition<'_, K, V> = TableDefinition::new(table);
        let mut table = txn.open_table(definition).unwrap();
        match value {
            Some(value) => drop(table.insert(key, value).unwrap()),
            None => drop(table.remove(key).unwrap()),
        }
    }
    txn.commit().unwrap();
}

/// Reads `p 10.0.0.0/24 fd00::/64; q 10.1.0.0/24` as two pools.
fn pools(text: &str) -> Vec<PoolSpec> {
    let pool = |text: &str| {
        let (name, ranges) = text.trim().split_once(' ').unwrap();
        PoolSpec {
            name: name.to_owned(),
            ranges: ranges.split(' ').map(|net| net.parse().unwrap()).collect(),
        }
    };
    text.split(';').map(pool).collect()
}

fn reopen(bench: &Bench, new: &str) -> Result<Ipam, IpamError> {
    let mut options = bench.options(&[]);
    options.pools = pools(new);
    Ipam::open(bench.path(), options)
}

#[test]
fn a_new_store_is_its_owners_alone_and_leaves_no_other_file() {
    let bench = Bench::new();
    let ipam = bench.open(&[V4]);
    let mode = fs::metadata(bench.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let files = fs::read_dir(bench.path().parent().unwrap()).unwrap();
    assert_eq!(files.count(), 1);
    assert_eq!(ipam.path(), bench.path());
}

#[test]
fn the_kernels_boot_id_and_the_systems_clock_are_the_defaults() {
    let bench = Bench::new();
    let options = Options::new(bench.options(&[("p", &[V4])]).pools);
    let ipam = Ipam::open(bench.path(), options).unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(ipam.boot_id(), boot_id.trim());
    let lease = ipam.allocate("p", &owner(1), Families::V4).unwrap();
    assert_eq!(lease.boot_id, boot_id.trim());
    let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - lease.created_s;
    assert!(age < 60, "{age} s");
}

#[test]
fn a_second_opener_learns_who_has_the_store() {
    let bench = Bench::new();
    let first = bench.open(&[V4]);
    let opened = [
        Ipam::open(bench.path(), bench.options(&[("p", &[V4])])),
        Ipam::open_existing(bench.path()),
    ];
    for opened in opened {
        let refused = opened.unwrap_err();
        let message = refused.to_string();
        assert!(
            message.contains(bench.path().to_str().unwrap()),
            "{message}"
        );
        assert!(message.contains("normally the node agent"), "{message}");
        let IpamError::Locked {
            holder: Some(Holder { pid, name }),
            ..
        } = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(pid, process::id());
        assert!(name.is_some());
    }
    drop(first);
    bench.open(&[V4]);
}

#[test]
fn an_interrupted_creation_is_begun_again() {
    let bench = Bench::new();
    let unfinished = bench.path().with_extension("redb.new");
    // What the engine leaves when it is stopped before its magic number is written.
    fs::write(&unfinished, vec![0; 1 << 16]).unwrap();
    let ipam = bench.open(&[V4]);
    ipam.allocate("p", &owner(1), Families::V4).unwrap();
    assert!(!unfinished.exists());
}

#[test]
fn a_creation_under_way_elsewhere_counts_as_open() {
    let bench = Bench::new();
    let unfinished = fs::File::create(bench.path().with_extension("redb.new")).unwrap();
    unfinished.lock().unwrap();
    let refused = Ipam::open(bench.path(), bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(
        matches!(&refused, IpamError::Locked { path, holder: Some(holder) }
            if *path == bench.path() && holder.pid == process::id()),
        "{refused:?}"
    );
}

#[test]
fn an_empty_file_becomes_a_store() {
    let bench = Bench::new();
    fs::write(bench.path(), "").unwrap();
    let refused = Ipam::open_existing(bench.path()).unwrap_err();
    assert!(matches!(refused, IpamError::NoStore { .. }), "{refused:?}");
    bench.open(&[V4]);
}

#[test]
fn a_file_that_is_something_else_is_left_as_it_is() {
    let bench = Bench::new();
    fs::write(bench.path(), "name = \"agent\"\n".repeat(1000)).unwrap();
    let before = fs::read(bench.path()).unwrap();
    let refused = Ipam::open(bench.path(), bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(
        matches!(refused, IpamError::NotAStore { .. }),
        "{refused:?}"
    );
    assert_eq!(fs::read(bench.path()).unwrap(), before);

    let directory = bench.path().parent().unwrap().to_owned();
    let refused = Ipam::open(&directory, bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(
        matches!(refused, IpamError::NotAStore { .. }),
        "{refused:?}"
    );
}

#[test]
fn somebody_elses_database_is_not_taken_for_a_store() {
    let bench = Bench::new();
    let db = Database::create(bench.path()).unwrap();
    drop(db);
    let refused = Ipam::open(bench.path(), bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(
        matches!(refused, IpamError::NotAStore { .. }),
        "{refused:?}"
    );

    // A table of our name, of other types.
    tamper::<u8, u8>(&bench.path(), "meta", 1, Some(1));
    let refused = Ipam::open(bench.path(), bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(
        matches!(refused, IpamError::NotAStore { .. }),
        "{refused:?}"
    );
}

#[test]
fn a_missing_directory_is_named() {
    let bench = Bench::new();
    let path = bench.path().with_file_name("nowhere").join("ipam.redb");
    let refused = Ipam::open(&path, bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(refused.to_string().contains("nowhere"), "{refused}");
    assert!(matches!(refused, IpamError::File { .. }), "{refused:?}");
}

#[test]
fn a_newer_schema_is_refused_with_the_way_out() {
    let bench = furnished();
    tamper::<&str, u64>(&bench.path(), "meta", "schema", Some(7));
    let refused = Ipam::open(bench.path(), bench.options(&[("p", &[V4])])).unwrap_err();
    assert!(matches!(
        refused,
        IpamError::UnknownSchema {
            found: 7,
            supported: 1,
            ..
        }
    ));
    let message = refused.to_string();
    assert!(
        message.contains("run the version that wrote it"),
        "{message}"
    );
}

#[test]
fn an_unreadable_record_is_named() {
    let bench = furnished();
    let key = (4, u128::from(0x0a00_0002_u32));
    tamper::<(u8, u128), &[u8]>(&bench.path(), "addresses", key, Some(b"{}"));
    let refused = Ipam::open_existing(bench.path()).unwrap_err();
    assert!(
        matches!(&refused, IpamError::Record { record, .. } if record == "addresses 10.0.0.2"),
        "{refused:?}"
    );
}

#[rstest]
#[case::lease_without_address("addresses", Inconsistency::LeaseWithoutAddress {
    address: ip("10.0.0.2"), owner: owner(1) })]
#[case::address_without_lease("owners", Inconsistency::AddressWithoutLease {
    address: ip("10.0.0.2"), owner: owner(1) })]
#[case::cooling_without_end("cooling", Inconsistency::CoolingWithoutEnd {
    address: ip("10.0.0.3") })]
#[case::end_without_cooling("cooled", Inconsistency::EndWithoutCooling {
    address: ip("10.0.0.3") })]
fn a_store_that_contradicts_itself_is_refused(#[case] what: &str, #[case] expected: Inconsistency) {
    let bench = furnished();
    let path = bench.path();
    let address = |last: u32| (4, u128::from(0x0a00_0000 + last));
    match what {
        "addresses" => tamper::<(u8, u128), &[u8]>(&path, what, address(2), None),
        "owners" => tamper::<(&str, &str), &[u8]>(&path, what, ("c1", "eth0"), None),
        "cooling" => {
            let (family, bits) = address(3);
            tamper::<(u64, u8, u128), ()>(&path, what, (1_000_000, family, bits), None);
        }
        _ => tamper::<(u8, u128), &[u8]>(&path, "addresses", address(3), None),
    }
    let refused = Ipam::open(&path, bench.options(&[("p", &[V4, "fd00::/64"])])).unwrap_err();
    assert!(
        matches!(&refused, IpamError::Inconsistent { inconsistency, .. }
            if *inconsistency == expected),
        "{refused:?}"
    );
}

#[test]
fn a_pool_may_gain_ranges_and_lose_unused_ones() {
    let bench = furnished();
    let ipam = bench.open(&["10.1.0.0/24", V4, "fd00::/64", "10.2.0.0/24"]);
    // The new first range is tried first; the old one has kept its place.
    let address = |n| {
        ipam.allocate("p", &owner(n), Families::V4)
            .unwrap()
            .addresses[0]
    };
    assert_eq!(address(3), ip("10.1.0.1"));
    ipam.release(&owner(3)).unwrap();
    drop(ipam);
    let ipam = bench.open(&[V4, "fd00::/64"]);
    let lease = ipam.allocate("p", &owner(4), Families::V4).unwrap();
    assert_eq!(lease.addresses, [ip("10.0.0.4")]);
    assert_eq!(ipam.usage().unwrap().len(), 2);
    drop(ipam);
    let ipam = Ipam::open_existing(bench.path()).unwrap();
    assert_eq!(ipam.pools(), pools("p 10.0.0.0/24 fd00::/64"));
    drop(ipam);
    // The dropped range took its cool-down with it.
    let ipam = bench.open(&[V4, "fd00::/64", "10.1.0.0/24"]);
    assert_eq!(ipam.usage().unwrap()[2].free, 254);
}

#[rstest]
#[case::dropped("p fd00::/64", V4)]
#[case::shrunk_away("p fd00::/64 10.0.0.128/25", V4)]
#[case::moved("q 10.0.0.0/24; p fd00::/64", V4)]
#[case::renamed("q 10.0.0.0/24 fd00::/64", V4)]
#[case::other_family("p 10.0.0.0/24", "fd00::/64")]
fn a_leased_address_cannot_be_left_out(#[case] new: &str, #[case] range: &str) {
    let bench = furnished();
    let refused = reopen(&bench, new).unwrap_err();
    assert!(
        matches!(&refused, IpamError::RangeInUse { pool, range: named, leases: 1 }
            if pool == "p" && named.to_string() == range),
        "{refused:?}"
    );
    // The refusal has changed nothing.
    let ipam = Ipam::open_existing(bench.path()).unwrap();
    assert_eq!(ipam.pools(), pools("p 10.0.0.0/24 fd00::/64"));
    assert_eq!(ipam.reservations().unwrap().len(), 1);
}

#[rstest]
#[case::shrunk_around_it("p fd00::/64 10.0.0.2/32 10.0.0.64/26", 0)]
#[case::grown("p fd00::/64 10.0.0.0/16", 1)]
fn a_range_may_change_around_a_lease(#[case] new: &str, #[case] reservations: usize) {
    let bench = furnished();
    let ipam = reopen(&bench, new).unwrap();
    assert_eq!(ipam.leases().unwrap().len(), 1);
    assert_eq!(ipam.reservations().unwrap().len(), reservations);
    assert_eq!(ipam.pools(), pools(new));
}

#[test]
fn a_leased_address_cannot_become_a_broadcast_address() {
    let bench = furnished();
    let ipam = bench.open(&[V4, "fd00::/64"]);
    ipam.allocate_specific("p", &owner(5), &[ip("10.0.0.127")])
        .unwrap();
    drop(ipam);
    let refused = reopen(&bench, "p fd00::/64 10.0.0.0/25").unwrap_err();
    assert!(
        matches!(refused, IpamError::RangeInUse { leases: 1, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_range_may_grow_and_keeps_what_is_in_it() {
    let bench = furnished();
    let ipam = bench.open(&["10.0.0.0/16", "fd00::/64"]);
    let usage = &ipam.usage().unwrap()[0];
    assert_eq!((usage.used, usage.reserved, usage.cooling), (1, 1, 1));
    assert_eq!(usage.capacity, 65534);
}

#[test]
fn a_tool_opens_the_store_as_the_agent_left_it() {
    let bench = Bench::new();
    let refused = Ipam::open_existing(bench.path()).unwrap_err();
    assert!(matches!(refused, IpamError::NoStore { .. }), "{refused:?}");

    let pools: &[(&str, &[&str])] = &[
        ("z", &["10.9.0.0/24", "fd00::/64", "10.1.0.0/24"]),
        ("a", &["10.2.0.0/24"]),
    ];
    let mut options = bench.options(pools);
    options.cooldown = std::time::Duration::from_millis(1_000_500);
    let ipam = Ipam::open(bench.path(), options).unwrap();
    ipam.allocate("a", &owner(1), Families::V4).unwrap();
    drop(ipam);

    let ipam = Ipam::open_existing(bench.path()).unwrap();
    assert_eq!(ipam.pools(), bench.options(pools).pools);
    ipam.release(&owner(1)).unwrap().unwrap();
    let refused = ipam
        .allocate_specific("a", &owner(2), &[ip("10.2.0.1")])
        .unwrap_err();
    // Half a second counts as a whole one; the test itself may take a few.
    assert!(
        matches!(
            refused,
            IpamError::CoolingDown {
                free_in_s: 990..=1001,
                ..
            }
        ),
        "{refused:?}"
    );
}

//! Random sequences of operations, against a model that is a map from addresses to states.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{Bench, ip, owner};
use datapath_ipam::{AddressRange, Families, Family, Ipam, IpamError, Owner};
use proptest::prelude::*;

const RANGES: [&str; 4] = ["10.0.0.0/29", "fd00::/126", "10.0.1.0/31", "fd00:1::9/128"];
const COOLDOWN_S: u64 = 60;

#[derive(Clone, Debug)]
enum Op {
    Allocate(usize, Families),
    Specific(usize, Vec<IpAddr>),
    Reserve(IpAddr, &'static str),
    Unreserve(IpAddr),
    Release(usize),
    Reconcile(Vec<usize>),
    Advance(u64),
    Reopen,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Leased(Owner),
    Reserved(&'static str),
    /// Released at this time by this owner of a lease.
    Cooling(u64, Option<Owner>),
}

#[derive(Default)]
struct Model {
    now_s: u64,
    addresses: BTreeMap<IpAddr, State>,
    last: BTreeMap<String, IpAddr>,
}

fn op() -> impl Strategy<Value = Op> {
    let who = || 0..10_usize;
    let families = prop_oneof![
        Just(Families::V4),
        Just(Families::V6),
        Just(Families::Dual),
        Just(Families::OfPool)
    ];
    // Everything in and just outside the ranges, so that every refusal comes up.
    let v4 = || (0..10_u8, 0..2_u8).prop_map(|(low, net)| ip(&format!("10.0.{net}.{low}")));
    let v6 = || (0..10_u8, 0..2_u8).prop_map(|(low, net)| ip(&format!("fd00:{net}::{low}")));
    let address = || prop_oneof![v4(), v6()];
    let addresses = prop_oneof![
        address().prop_map(|address| vec![address]),
        (v4(), v6()).prop_map(|(v4, v6)| vec![v6, v4]),
        prop::collection::vec(address(), 0..3),
    ];
    let purpose = prop_oneof![Just("gateway"), Just("health")];
    prop_oneof![
        8 => (who(), families).prop_map(|(who, families)| Op::Allocate(who, families)),
        3 => (who(), addresses).prop_map(|(who, addresses)| Op::Specific(who, addresses)),
        2 => (address(), purpose).prop_map(|(address, purpose)| Op::Reserve(address, purpose)),
        2 => address().prop_map(Op::Unreserve),
        6 => who().prop_map(Op::Release),
        1 => prop::collection::vec(who(), 0..6).prop_map(Op::Reconcile),
        3 => (0..90_u64).prop_map(Op::Advance),
        1 => Just(Op::Reopen),
    ]
}

fn ranges(family: Option<Family>) -> impl Iterator<Item = AddressRange> {
    RANGES
        .iter()
        .map(|net| AddressRange::new(net.parse().unwrap()))
        .filter(move |range| family.is_none_or(|family| range.family() == family))
}

/// Every usable address of a range, ascending. The ranges are small.
fn usable(range: AddressRange) -> Vec<IpAddr> {
    // `hosts` of an IPv6 prefix includes the addresses that are not usable here.
    let all: Vec<IpAddr> = range.net().hosts().collect();
    all.into_iter().filter(|a| range.contains(*a)).collect()
}

impl Model {
    fn advance(&mut self, by_s: u64) {
        self.now_s += by_s;
        let now_s = self.now_s;
        self.addresses.retain(|_, state| {
            !matches!(state, State::Cooling(released_s, _) if released_s.saturating_add(COOLDOWN_S) <= now_s)
        });
    }

    fn held_by(&self, owner: &Owner) -> Vec<IpAddr> {
        let leased = State::Leased(owner.clone());
        let held = self.addresses.iter().filter(|(_, state)| **state == leased);
        held.map(|(address, _)| *address).collect()
    }

    fn next(&self, family: Family) -> Option<(String, IpAddr)> {
        ranges(Some(family)).find_map(|range| {
            let name = range.net().to_string();
            let all = usable(range);
            let start = self.last.get(&name).map_or(0, |last| {
                all.iter().position(|address| address == last).unwrap() + 1
            });
            let (before, after) = all.split_at(start);
            let free = after
                .iter()
                .chain(before)
                .find(|a| !self.addresses.contains_key(a))?;
            Some((name, *free))
        })
    }

    fn release(&mut self, owner: &Owner) {
        for address in self.held_by(owner) {
            let state = State::Cooling(self.now_s, Some(owner.clone()));
            self.addresses.insert(address, state);
        }
    }

    /// Does the operation on both sides and compares what comes of it.
    fn apply(&mut self, ipam: &Ipam, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Allocate(who, families) => self.allocate(ipam, &owner(*who), *families)?,
            Op::Specific(who, addresses) => self.specific(ipam, &owner(*who), addresses)?,
            Op::Reserve(address, purpose) => self.reserve(ipam, *address, purpose)?,
            Op::Unreserve(address) => {
                let ended = ipam.unreserve("p", *address);
                if !ranges(None).any(|range| range.contains(*address)) {
                    prop_assert!(
                        matches!(ended, Err(IpamError::NotInPool { .. })),
                        "{ended:?}"
                    );
                } else if let Some(State::Reserved(_)) = self.addresses.get(address) {
                    prop_assert!(ended.unwrap());
                    self.addresses
                        .insert(*address, State::Cooling(self.now_s, None));
                } else {
                    prop_assert!(!ended.unwrap());
                }
            }
            Op::Release(who) => {
                let owner = owner(*who);
                let released = ipam.release(&owner).unwrap();
                let addresses = released.map_or(vec![], |lease| lease.addresses);
                prop_assert_eq!(addresses, self.held_by(&owner));
                self.release(&owner);
            }
            Op::Reconcile(gone) => {
                let gone: Vec<_> = gone.iter().map(|who| owner(*who)).collect();
                let released = ipam
                    .reconcile(|lease| !gone.contains(&lease.owner))
                    .unwrap();
                for lease in &released {
                    prop_assert_eq!(&lease.addresses, &self.held_by(&lease.owner));
                    self.release(&lease.owner);
                }
                for owner in gone {
                    prop_assert_eq!(self.held_by(&owner), Vec::<IpAddr>::new());
                }
            }
            Op::Advance(_) | Op::Reopen => {}
        }
        Ok(())
    }

    fn allocate(
        &mut self,
        ipam: &Ipam,
        owner: &Owner,
        families: Families,
    ) -> Result<(), TestCaseError> {
        let outcome = ipam.allocate("p", owner, families);
        if !self.held_by(owner).is_empty() {
            let held = self.held_by(owner);
            prop_assert!(
                matches!(&outcome, Err(IpamError::AlreadyAllocated { lease })
                    if lease.addresses == held),
                "{outcome:?}"
            );
            return Ok(());
        }
        let wanted: &[Family] = match families {
            Families::V4 => &[Family::V4],
            Families::V6 => &[Family::V6],
            Families::Dual | Families::OfPool => &[Family::V4, Family::V6],
        };
        let mut picks = Vec::new();
        for family in wanted {
            let Some(pick) = self.next(*family) else {
                prop_assert!(
                    matches!(&outcome, Err(IpamError::Exhausted { family: named, .. })
                        if named == family),
                    "{outcome:?}"
                );
                return Ok(());
            };
            picks.push(pick);
        }
        let expected: Vec<IpAddr> = picks.iter().map(|(_, address)| *address).collect();
        let lease = outcome.unwrap();
        prop_assert_eq!(lease.addresses, expected);
        prop_assert_eq!(lease.created_s, self.now_s);
        for (range, address) in picks {
            self.last.insert(range, address);
            self.addresses.insert(address, State::Leased(owner.clone()));
        }
        Ok(())
    }

    fn specific(
        &mut self,
        ipam: &Ipam,
        owner: &Owner,
        addresses: &[IpAddr],
    ) -> Result<(), TestCaseError> {
        let outcome = ipam.allocate_specific("p", owner, addresses);
        let count = |family| {
            addresses
                .iter()
                .filter(|a| Family::of(**a) == family)
                .count()
        };
        if addresses.is_empty() || count(Family::V4) > 1 || count(Family::V6) > 1 {
            prop_assert!(
                matches!(outcome, Err(IpamError::RequestShape { .. })),
                "{outcome:?}"
            );
            return Ok(());
        }
        if !addresses
            .iter()
            .all(|a| ranges(None).any(|range| range.contains(*a)))
        {
            prop_assert!(
                matches!(outcome, Err(IpamError::NotInPool { .. })),
                "{outcome:?}"
            );
            return Ok(());
        }
        if !self.held_by(owner).is_empty() {
            let refused = matches!(outcome, Err(IpamError::AlreadyAllocated { .. }));
            prop_assert!(refused, "{outcome:?}");
            return Ok(());
        }
        let mut ordered = addresses.to_vec();
        ordered.sort();
        for address in &ordered {
            let refused = match (self.addresses.get(address), &outcome) {
                (None, _) => continue,
                (Some(State::Cooling(_, Some(last))), _) if last == owner => continue,
                (Some(State::Cooling(released_s, _)), outcome) => {
                    matches!(outcome, Err(IpamError::CoolingDown { free_in_s, .. })
                        if *free_in_s == released_s + COOLDOWN_S - self.now_s)
                }
                (Some(State::Leased(holder)), outcome) => {
                    matches!(outcome, Err(IpamError::InUse { owner, .. }) if owner == holder)
                }
                (Some(State::Reserved(held)), outcome) => {
                    matches!(outcome, Err(IpamError::Reserved { purpose, .. }) if purpose == held)
                }
            };
            prop_assert!(refused, "{outcome:?}");
            return Ok(());
        }
        prop_assert_eq!(outcome.unwrap().addresses, ordered.clone());
        for address in ordered {
            self.addresses.insert(address, State::Leased(owner.clone()));
        }
        Ok(())
    }

    fn reserve(
        &mut self,
        ipam: &Ipam,
        address: IpAddr,
        purpose: &'static str,
    ) -> Result<(), TestCaseError> {
        let outcome = ipam.reserve("p", address, purpose);
        if !ranges(None).any(|range| range.contains(address)) {
            prop_assert!(
                matches!(outcome, Err(IpamError::NotInPool { .. })),
                "{outcome:?}"
            );
            return Ok(());
        }
        let as_expected = match self.addresses.get(&address) {
            Some(State::Leased(holder)) => {
                matches!(&outcome, Err(IpamError::InUse { owner, .. }) if owner == holder)
            }
            Some(State::Reserved(held)) if *held != purpose => {
                matches!(&outcome, Err(IpamError::Reserved { purpose, .. }) if purpose == held)
            }
            _ => {
                self.addresses.insert(address, State::Reserved(purpose));
                outcome.is_ok()
            }
        };
        prop_assert!(as_expected, "{outcome:?}");
        Ok(())
    }

    /// Compares everything that can be read.
    fn compare(&self, ipam: &Ipam) -> Result<(), TestCaseError> {
        let mut seen = BTreeMap::new();
        for lease in ipam.leases().unwrap() {
            let looked_up = ipam.lease(&lease.owner).unwrap();
            prop_assert_eq!(looked_up.as_ref(), Some(&lease));
            for address in lease.addresses {
                let twice = seen.insert(address, State::Leased(lease.owner.clone()));
                prop_assert_eq!(twice, None, "{} has two owners", address);
            }
        }
        for reservation in ipam.reservations().unwrap() {
            let purpose = match reservation.purpose.as_str() {
                "gateway" => "gateway",
                _ => "health",
            };
            let twice = seen.insert(reservation.address, State::Reserved(purpose));
            prop_assert_eq!(twice, None);
        }
        let mut held = self.addresses.clone();
        held.retain(|_, state| !matches!(state, State::Cooling(..)));
        prop_assert_eq!(seen, held);

        for (usage, range) in ipam.usage().unwrap().into_iter().zip(ranges(None)) {
            let count = |wanted: fn(&State) -> bool| {
                let within = self.addresses.iter().filter(|(a, _)| range.contains(**a));
                within.filter(|(_, state)| wanted(state)).count() as u64
            };
            prop_assert_eq!(usage.range, range.net());
            prop_assert_eq!(usage.capacity, usable(range).len() as u128);
            prop_assert_eq!(usage.used, count(|s| matches!(s, State::Leased(_))));
            prop_assert_eq!(usage.reserved, count(|s| matches!(s, State::Reserved(_))));
            prop_assert_eq!(usage.cooling, count(|s| matches!(s, State::Cooling(..))));
            let held = u128::from(usage.used + usage.reserved + usage.cooling);
            prop_assert_eq!(usage.free, usage.capacity - held);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_does_what_the_model_does(
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let bench = Bench::new();
        let mut ipam = Some(bench.open(&RANGES));
        let mut model = Model { now_s: 1_000_000, ..Model::default() };
        for op in &ops {
            match op {
                Op::Advance(by_s) => {
                    bench.clock.advance(*by_s);
                    model.advance(*by_s);
                }
                Op::Reopen => {
                    drop(ipam.take());
                    ipam = Some(bench.open(&RANGES));
                }
                _ => {}
            }
            let ipam = ipam.as_ref().unwrap();
            model.apply(ipam, op)?;
            model.compare(ipam)?;
        }
    }
}

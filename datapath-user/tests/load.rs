//! The kernel takes every program of the object, with whatever settings decide which parts of
//! them it sees. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use datapath_kern::abi::config::{Config, tunnel, verdicts};
use datapath_kern::abi::flow::resizing;
use datapath_user::{OBJECT, PROGRAMS};

/// What the verifier walks at most (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf.h), less a
/// reserve for kernels that walk more than this one.
const VERIFIED: u32 = 700_000;

#[test]
fn every_program_loads_under_every_setting() {
    for tunnel in [tunnel::DIRECT, tunnel::NATIVE] {
        for identity_from_vni in [0, 1] {
            for (checksum_v6_flags, decap_flags) in helper_flags() {
                let settings = Config {
                    tunnel,
                    identity_from_vni,
                    // With quotas and without, strict about TCP and not.
                    endpoint_established: 100 * identity_from_vni,
                    endpoint_begun_per_s: 100 * identity_from_vni,
                    tcp_loose: identity_from_vni,
                    // Flows drained and all told, or not.
                    revoke_drains: identity_from_vni,
                    verdicts: identity_from_vni * verdicts::ALL,
                    checksum_v6_flags,
                    decap_flags,
                    host_interface: 1,
                    ..Config::DEFAULT
                };
                println!(
                    "tunnel {tunnel}, identity from VNI {identity_from_vni}, checksum flags \
                     {checksum_v6_flags:#x}, decap flags {decap_flags}:"
                );
                load_all(&settings, 0);
            }
        }
    }
}

#[test]
fn every_program_loads_while_the_tables_change_their_size() {
    let settings = Config {
        host_interface: 1,
        ..Config::DEFAULT
    };
    println!("both tables filled from former ones:");
    load_all(&settings, resizing::FLOWS | resizing::PENDING);
}

#[test]
fn the_object_holds_the_programs_that_are_named_and_no_other() {
    let ebpf = open(&Config::DEFAULT, 0);
    let mut found: Vec<_> = ebpf.programs().map(|(name, _)| name).collect();
    let mut named = PROGRAMS;
    found.sort_unstable();
    named.sort_unstable();
    assert_eq!(found, named);
}

fn load_all(settings: &Config, resizing: u32) {
    let mut ebpf = open(settings, resizing);
    for name in PROGRAMS {
        let program = ebpf.program_mut(name).unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        if let Err(error) = program.load() {
            panic!("{name}: {error}");
        }
        let info = program.info().unwrap();
        let instructions = info.size_translated().unwrap() / 8;
        let verified = info.verified_instruction_count().unwrap();
        println!("  {name:<12} {instructions:>6} instructions, {verified:>7} verified");
        assert!(
            verified < VERIFIED,
            "{name}: {verified} is close to what kernels refuse"
        );
    }
}

fn open(settings: &Config, resizing: u32) -> Ebpf {
    EbpfLoader::new()
        .override_global("CONFIG", settings, true)
        .override_global("RESIZING", &resizing, true)
        .map_max_entries("flows", 1024)
        .map_max_entries("pending", 1024)
        .load(OBJECT)
        .unwrap_or_else(|error| panic!("{error}: loading needs root"))
}

/// As an old kernel knows them, and a new one: `BPF_F_IPV6`, and whether there are
/// `BPF_F_ADJ_ROOM_DECAP_L3_*`. A kernel looks at flags when a packet comes, so one that does not
/// know them takes the program too.
fn helper_flags() -> [(u16, u16); 2] {
    [(0, 0), (1 << 7, 1)]
}

//! Programs attached as filters, as on kernels without tcx: traffic passes, others' filters stay,
//! adoption replaces in place, and nothing is left. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::net::IpAddr;
use std::process::Command;

use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use common::{Lab, NODE, OUTSIDE, UPLINK, ip, pod, udp};
use datapath_tunnel::netlink::Netlink;
use datapath_user::{Attach, Config, Datapath, OBJECT, cleanup};

#[test]
fn pods_are_masqueraded_by_filters() {
    Lab::run(|lab| {
        let datapath = Datapath::open(config(lab)).unwrap();
        let (pod, spec) = pod("web-1", 5);
        datapath.add_endpoint(&spec).unwrap();
        for (outside, node) in OUTSIDE.into_iter().zip(NODE) {
            let seen = udp(
                |work| pod.run(work),
                |work| lab.outside.run(work),
                ip(outside),
            );
            assert_eq!(seen.unwrap().ip(), ip(node));
        }
        let filters = filters(UPLINK, "ingress");
        assert!(filters.contains("from_uplink direct-action"), "{filters}");
        assert!(
            filters.contains("pref 219 bpf chain 0 handle 0x1"),
            "{filters}"
        );
        datapath.close().unwrap();
        assert!(!has_clsact(UPLINK), "it was made for the datapath");
    });
}

#[test]
fn a_clsact_of_others_stays_with_their_filters() {
    Lab::run(|lab| {
        let index = Netlink::open()
            .unwrap()
            .link(UPLINK)
            .unwrap()
            .unwrap()
            .index;
        assert!(Netlink::open().unwrap().add_clsact(index).unwrap());
        let _theirs = filter_of_others(7);
        let before = filters(UPLINK, "ingress");
        let datapath = Datapath::open(config(lab)).unwrap();
        assert!(filters(UPLINK, "ingress").len() > before.len());
        datapath.close().unwrap();
        assert_eq!(filters(UPLINK, "ingress"), before);
        assert!(has_clsact(UPLINK));
    });
}

#[test]
fn a_filter_of_others_in_our_place_is_not_replaced() {
    Lab::run(|lab| {
        let index = Netlink::open()
            .unwrap()
            .link(UPLINK)
            .unwrap()
            .unwrap()
            .index;
        Netlink::open().unwrap().add_clsact(index).unwrap();
        let _theirs = filter_of_others(219);
        let before = filters(UPLINK, "ingress");
        let error = Datapath::open(config(lab)).unwrap_err().to_string();
        assert!(
            error.contains("from_uplink") && error.contains(UPLINK),
            "{error}"
        );
        assert_eq!(filters(UPLINK, "ingress"), before);
        assert!(!lab.directory().join("bpf").exists());
    });
}

#[test]
fn a_successor_replaces_the_filters_in_place() {
    Lab::run(|lab| {
        let datapath = Datapath::open(config(lab)).unwrap();
        let (pod, spec) = pod("web-1", 5);
        let host_interface = datapath.add_endpoint(&spec).unwrap().host_interface;
        let before = program_ids(UPLINK);
        datapath.leave();
        assert_eq!(program_ids(UPLINK), before, "packets go on");

        // With another setting, or the programs would be the same.
        let datapath = Datapath::open(Config {
            events_per_s: 7,
            ..config(lab)
        })
        .unwrap();
        let adoption = datapath.adopted().unwrap();
        assert_eq!((adoption.links_replaced, adoption.links_attached), (6, 0));
        assert_eq!(adoption.links_removed, 0);
        let after = program_ids(UPLINK);
        assert_eq!((before.len(), after.len()), (2, 2));
        assert!(
            before.iter().all(|id| !after.contains(id)),
            "{before:?} {after:?}"
        );
        let seen = udp(
            |work| pod.run(work),
            |work| lab.outside.run(work),
            outside(),
        );
        assert_eq!(seen.unwrap().ip(), ip(NODE[0]));
        assert!(has_clsact(&host_interface));

        datapath.leave();
        cleanup(&lab.directory().join("bpf")).unwrap();
        assert!(!has_clsact(UPLINK) && !lab.directory().join("bpf").exists());
    });
}

#[test]
fn the_setting_may_change_between_processes() {
    Lab::run(|lab| {
        let (pod, spec) = pod("web-1", 5);
        let datapath = Datapath::open(config(lab)).unwrap();
        datapath.add_endpoint(&spec).unwrap();
        datapath.leave();
        for attach in [Attach::Auto, Attach::Clsact] {
            let datapath = Datapath::open(Config {
                attach,
                ..lab.config()
            })
            .unwrap();
            assert_eq!(has_clsact(UPLINK), attach == Attach::Clsact);
            let seen = udp(
                |work| pod.run(work),
                |work| lab.outside.run(work),
                outside(),
            );
            assert_eq!(seen.unwrap().ip(), ip(NODE[0]));
            datapath.leave();
        }
        let datapath = Datapath::open(config(lab)).unwrap();
        datapath.close().unwrap();
        assert!(!has_clsact(UPLINK));
    });
}

fn config(lab: &Lab) -> Config {
    Config {
        attach: Attach::Clsact,
        ..lab.config()
    }
}

/// A program that is none of ours, attached to the uplink with a priority and our handle.
fn filter_of_others(priority: u16) -> Ebpf {
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("flows", 1024)
        .map_max_entries("pending", 1024)
        .load(OBJECT)
        .unwrap();
    let program = ebpf.program_mut("to_host").unwrap();
    let program: &mut SchedClassifier = program.try_into().unwrap();
    program.load().unwrap();
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle: TcHandle::new(0, 1),
        classid: None,
    });
    let side = TcAttachType::Ingress;
    program.attach_with_options(UPLINK, side, options).unwrap();
    ebpf
}

fn outside() -> IpAddr {
    ip(OUTSIDE[0])
}

fn has_clsact(interface: &str) -> bool {
    tc(&["qdisc", "show", "dev", interface]).contains("clsact")
}

fn filters(interface: &str, side: &str) -> String {
    tc(&["filter", "show", "dev", interface, side])
}

/// Of what is attached to an interface, in both directions.
fn program_ids(interface: &str) -> Vec<String> {
    let text = filters(interface, "ingress") + &filters(interface, "egress");
    let words: Vec<_> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "id");
    pairs.map(|pair| pair[1].to_owned()).collect()
}

/// Runs tc(8) in the namespace of the calling thread.
fn tc(arguments: &[&str]) -> String {
    let output = Command::new("tc").args(arguments).output().unwrap();
    assert!(output.status.success(), "tc {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

//! A datapath outlives its process, and the next one takes it over. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use common::{
    Lab, OUTSIDE, UPLINK, here, ip,
    machine::{Machine, mount_bpffs, names, names_of_links, peer, text, wait},
    net, of, ping, pod,
    stream::Stream,
    udp,
    worker::{Job, Worker, work_if_told},
};
use datapath_kern::abi::{
    self,
    state::{State, phase},
};
use datapath_tunnel::netlink::{Netlink, Route};
use datapath_user::{Config, Datapath, Error, OBJECT, PortRange, cleanup};

#[test]
fn what_is_left_is_taken_over_and_no_flow_is_lost() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let first = Datapath::open(lab.config()).unwrap();
        assert_eq!(first.adopted(), None);
        survives(lab, Some(first));
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn a_killed_process_costs_no_flow() {
    work_if_told();
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let job = Job::new(lab.config());
        let mut worker = Worker::start("a_killed_process_costs_no_flow", &job);
        worker.wait("ready");
        let error = Datapath::open(lab.config()).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains(&format!("process {}", worker.pid())),
            "{said}"
        );
        worker.kill();
        survives(lab, None);
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn a_panic_costs_no_flow() {
    Lab::run(|lab| {
        let first = Datapath::open(lab.config()).unwrap();
        let panicked = std::thread::scope(|scope| {
            let panics = || {
                let _datapath = first;
                panic!("on purpose");
            };
            scope.spawn(panics).join()
        });
        assert!(panicked.is_err());
        let second = Datapath::open(lab.config()).unwrap();
        assert!(second.adopted().is_some());
        second.close().unwrap();
    });
}

/// Runs flows over a datapath that loses its process twice: as the caller has it, then by
/// [`Datapath::leave`].
fn survives(lab: &Lab, first: Option<Datapath>) {
    let (one, spec_one) = pod("web-1", 5);
    let (two, spec_two) = pod("web-2", 6);
    let first = first.unwrap_or_else(|| Datapath::open(lab.config()).unwrap());
    let views = [&spec_one, &spec_two].map(|spec| first.add_endpoint(spec).unwrap());
    let peer_view = first.upsert_peer(&peer("node-2", 2)).unwrap();

    let outside = ip(OUTSIDE[1]);
    let mut streams = vec![
        Stream::open(&one, &lab.outside, ip(OUTSIDE[0])),
        Stream::open(&one, &lab.outside, outside),
        Stream::open(&one, &two, spec_two.addresses[0]),
        Stream::open(&two, &one, spec_one.addresses[1]),
    ];
    let pairs = |datapath: &Datapath, streams: &[Stream]| -> Vec<_> {
        let flows = datapath.flows().unwrap();
        streams.iter().map(|stream| stream.pair(&flows)).collect()
    };
    for stream in &mut streams {
        stream.echo();
    }
    let known = pairs(&first, &streams);
    let links = pinned_links(lab);
    assert_eq!(
        links.len(),
        8,
        "two each of the uplink, the gateway and two pods"
    );
    first.leave();

    // Nobody is there; packets go on, and new flows begin.
    for stream in &mut streams {
        stream.echo();
    }
    udp(of(&two), of(&lab.outside), ip(OUTSIDE[0])).unwrap();

    let second = Datapath::open(lab.config()).unwrap();
    let adoption = second.adopted().unwrap();
    assert_eq!((adoption.endpoints_kept, adoption.peers_kept), (2, 1));
    assert!(adoption.endpoints_removed.is_empty(), "{adoption:?}");
    assert!(adoption.peers_removed.is_empty(), "{adoption:?}");
    let changes = [
        adoption.links_attached,
        adoption.links_removed,
        adoption.prefixes_changed,
        adoption.routes_removed,
    ];
    assert_eq!((adoption.links_replaced, changes), (8, [0; 4]));
    assert!(adoption.flows_kept >= 8 && !adoption.flows_judged_again);
    assert_eq!(second.status().unwrap().adopted, Some(adoption));

    // Made of the same: not even the programs are others.
    assert_eq!(pinned_links(lab), links);
    assert_eq!(second.endpoints(), views);
    let peers = second.peers();
    assert_eq!(peers[0].index, peer_view.index);
    assert_eq!(peers[0].generation, peer_view.generation);
    assert_eq!(
        second.upsert_peer(&peer("node-2", 2)).unwrap().generation,
        peer_view.generation,
        "the same peer again changes nothing"
    );
    for stream in &mut streams {
        stream.echo();
    }
    assert_eq!(pairs(&second, &streams), known, "the same flows");

    // All of it can be changed as if it had been made here.
    let (three, spec_three) = pod("web-3", 7);
    let third = second.add_endpoint(&spec_three).unwrap();
    assert!(views.iter().all(|view| view.slot != third.slot));
    udp(of(&three), of(&one), spec_one.addresses[0]).unwrap();
    ping(here, spec_three.addresses[1]).unwrap();
    second.remove_endpoint("web-2").unwrap();
    second.remove_peer("node-2").unwrap();
    for stream in &mut streams[..2] {
        stream.echo();
    }
    second.close().unwrap();
}

#[test]
fn what_went_meanwhile_is_put_right() {
    Lab::run(|lab| {
        let first = Datapath::open(lab.config()).unwrap();
        let before = Machine::look(lab);
        let (one, spec_one) = pod("web-1", 5);
        let (two, spec_two) = pod("web-2", 6);
        let gone = first.add_endpoint(&spec_two).unwrap();
        let view = first.add_endpoint(&spec_one).unwrap();
        let mut stream = Stream::open(&one, &lab.outside, ip(OUTSIDE[0]));
        stream.echo();
        udp(of(&two), of(&one), spec_one.addresses[0]).unwrap();
        first.leave();

        // A pod goes, one loses its address and its route, the gateway pair and a route of the
        // node's go, an uplink gets an address, and a route leads to nobody.
        drop(two);
        let netlink = Netlink::open().unwrap();
        wait("the veth pair goes with the namespace", || {
            netlink.link(&gone.host_interface).unwrap().is_none()
        });
        let inside = one.netlink();
        let eth0 = inside.link("eth0").unwrap().unwrap().index;
        inside
            .delete_address(eth0, net("fd00:244:1::5/128"))
            .unwrap();
        let host = netlink.link("dp_host").unwrap().unwrap().index;
        netlink.delete_link(host).unwrap();
        let uplink = netlink.link(UPLINK).unwrap().unwrap().index;
        netlink.add_address(uplink, net("192.0.2.7/24")).unwrap();

        let second = Datapath::open(lab.config()).unwrap();
        let adoption = second.adopted().unwrap();
        assert_eq!(adoption.endpoints_removed, ["web-2"]);
        assert_eq!((adoption.endpoints_kept, adoption.links_attached), (1, 2));
        assert_eq!((adoption.links_replaced, adoption.links_removed), (4, 4));
        assert_eq!(adoption.prefixes_changed, 1, "the new address");
        assert_eq!(second.endpoints(), [view]);
        let flows = second.flows().unwrap();
        assert!(
            flows
                .iter()
                .all(|flow| flow.from != "gone" && flow.to != "gone"),
            "{flows:#?}"
        );
        stream.echo();
        for address in spec_one.addresses {
            ping(here, address).unwrap();
        }
        let (_two, spec_two) = pod("web-2", 6);
        second.add_endpoint(&spec_two).unwrap();
        second.remove_endpoint("web-2").unwrap();
        second.remove_endpoint("web-1").unwrap();
        let routed = Machine::look(lab);
        assert_eq!(routed.links, before.links);
        second.leave();

        // What is on dp_host and leads to nobody goes as well.
        let host = netlink.link("dp_host").unwrap().unwrap().index;
        let stray = Route::to(net("10.244.9.0/24")).dev(host);
        netlink.add_route(&stray).unwrap();
        let third = Datapath::open(lab.config()).unwrap();
        assert_eq!(third.adopted().unwrap().routes_removed, 1);
        assert_eq!(Machine::look(lab).routes, routed.routes);
        third.close().unwrap();
    });
}

#[test]
fn other_settings_judge_all_flows_again() {
    Lab::run(|lab| {
        let config = Config {
            event_ring_bytes: lab.config().event_ring_bytes * 2,
            ..lab.config()
        };
        let first = Datapath::open(config.clone()).unwrap();
        let (one, spec) = pod("web-1", 5);
        first.add_endpoint(&spec).unwrap();
        let mut stream = Stream::open(&one, &lab.outside, ip(OUTSIDE[0]));
        stream.echo();
        let links = pinned_links(lab);
        first.leave();
        let error = Datapath::open(lab.config()).unwrap_err();
        assert!(text(&error).contains("set event_ring_bytes ="), "{error}");
        let config = Config {
            nat_ports: PortRange {
                first: 20_000,
                last: 30_000,
            },
            ..config
        };
        let second = Datapath::open(config).unwrap();
        assert!(second.adopted().unwrap().flows_judged_again);
        let now = pinned_links(lab);
        assert_eq!(now.len(), links.len());
        for (name, (link, program)) in &links {
            let (link_now, program_now) = now[name];
            assert_eq!(link_now, *link, "{name} is the same link");
            assert_ne!(program_now, *program, "{name} has the new program");
        }
        stream.echo();
        let sender = udp(of(&one), of(&lab.outside), ip(OUTSIDE[0])).unwrap();
        assert!(sender.port() >= 20_000, "{sender}");
        second.close().unwrap();
    });
}

#[test]
fn what_does_not_fit_is_refused_and_runs_on() {
    Lab::run(|lab| {
        let (this, next) = (abi::VERSION, abi::VERSION + 1);
        let first = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("web-1", 5);
        first.add_endpoint(&spec).unwrap();
        let mut stream = Stream::open(&one, &lab.outside, ip(OUTSIDE[0]));
        first.leave();
        let before = Machine::look(lab);
        let mut refused = |change: &dyn Fn(&mut Config), words: &[&str]| {
            let mut config = lab.config();
            change(&mut config);
            let error = Datapath::open(config).unwrap_err();
            let said = text(&error);
            for word in words {
                assert!(said.contains(word), "no {word} in: {said}");
            }
            let after = Machine {
                // It shows the mode of the directory.
                mounts: before.mounts.clone(),
                ..Machine::look(lab)
            };
            assert_eq!(after, before, "after: {said}");
            stream.echo();
            error
        };
        let error = refused(
            &|config| config.event_ring_bytes *= 2,
            &["event_ring_bytes =", "dpctl cleanup --bpffs"],
        );
        assert!(matches!(error, Error::MapShape { .. }), "{error:?}");
        let error = refused(
            &|config| config.gateways[0] = ip("10.244.1.2"),
            &["10.244.1.1", "10.244.1.2", "dpctl cleanup"],
        );
        assert!(matches!(error, Error::Changed { .. }), "{error:?}");
        let error = refused(
            &|config| {
                config.pod_cidrs[0] = net("10.244.1.0/30");
            },
            &["10.244.1.5", "web-1"],
        );
        assert!(matches!(error, Error::Changed { .. }), "{error:?}");

        let mut object = OBJECT.to_vec();
        let head = [abi::MAGIC.to_le_bytes(), abi::VERSION.to_le_bytes()].concat();
        let settings = object.windows(head.len()).position(|at| at == head);
        object[settings.unwrap() + 4] += 1;
        let objects = tempfile::tempdir().unwrap();
        let (newer, none) = (
            objects.path().join("newer.o"),
            objects.path().join("none.o"),
        );
        fs::write(&newer, object).unwrap();
        fs::write(&none, "#!/bin/sh\n").unwrap();
        let versions = format!("ABI version is {next}, this is version {this}");
        for (file, words) in [
            (&newer, ["newer.o", &versions, "xtask ebpf"]),
            (&none, ["none.o", "no ELF file", "leave `object` out"]),
        ] {
            let error = refused(&|config| config.object = Some(file.clone()), &words);
            assert!(matches!(error, Error::OtherObject { .. }), "{error:?}");
        }

        // Another directory has another datapath: there can be one.
        let elsewhere = lab.directory().join("other");
        let error = refused(&|config| config.bpffs.clone_from(&elsewhere), &["dp_host"]);
        assert!(matches!(error, Error::Occupied { .. }), "{error:?}");

        let maps = lab.directory().join("bpf/maps");
        set_state(&maps, |state| state.abi_version += 1);
        let error = refused(
            &|_| {},
            &[
                &format!("ABI version {next}"),
                &format!("this is version {this}"),
                "dpctl cleanup",
            ],
        );
        assert!(matches!(error, Error::AbiVersion { .. }), "{error:?}");
        set_state(&maps, |state| state.abi_version -= 1);

        set_state(&maps, |state| state.netns += 1);
        let error = refused(&|_| {}, &["another network namespace", "nsenter"]);
        assert!(matches!(error, Error::OtherNamespace { .. }), "{error:?}");
        set_state(&maps, |state| state.netns -= 1);

        let root = lab.directory().join("bpf");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let error = refused(&|_| {}, &["mode 0755", "chmod 0700"]);
        assert!(matches!(error, Error::Owner { .. }), "{error:?}");
        assert!(matches!(cleanup(&root), Err(Error::Owner { .. })));
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        nix::unistd::chown(&root, Some(4711.into()), None).unwrap();
        let error = refused(&|_| {}, &["user 4711", "chown root"]);
        assert!(matches!(error, Error::Owner { .. }), "{error:?}");
        nix::unistd::chown(&root, Some(0.into()), None).unwrap();

        // All of it still fits as it was.
        let second = Datapath::open(lab.config()).unwrap();
        stream.echo();
        assert_eq!(second.adopted().unwrap().endpoints_kept, 1);
        second.close().unwrap();
    });
}

#[test]
fn pins_of_others_are_refused_and_stay() {
    Lab::run(|lab| {
        let root = lab.directory().join("bpf");
        fs::create_dir(&root).unwrap();
        mount_bpffs(&root);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        let refused = |path: &Path| {
            for error in [
                Datapath::open(lab.config()).unwrap_err(),
                cleanup(&root).unwrap_err(),
            ] {
                assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
                let said = text(&error);
                assert!(said.contains(path.to_str().unwrap()), "{said}");
            }
        };
        // Beside ours, in the place of ours, and where the state should be.
        let map = || HashMap::<MapData, u32, u32>::create(8, 0).unwrap();
        let stranger = root.join("stranger");
        map().pin(&stranger).unwrap();
        refused(&stranger);
        fs::remove_file(&stranger).unwrap();
        fs::create_dir(root.join("maps")).unwrap();
        for name in ["flows", "state"] {
            let pin = root.join("maps").join(name);
            map().pin(&pin).unwrap();
            refused(&pin);
            fs::remove_file(&pin).unwrap();
        }
        fs::remove_dir(root.join("maps")).unwrap();

        // In a whole datapath.
        Datapath::open(lab.config()).unwrap().leave();
        let extra = root.join("maps/extra");
        map().pin(&extra).unwrap();
        let error = Datapath::open(lab.config()).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
        fs::remove_file(&extra).unwrap();
        let metrics = root.join("maps/metrics");
        fs::remove_file(&metrics).unwrap();
        let error = Datapath::open(lab.config()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        map().pin(&metrics).unwrap();
        let error = Datapath::open(lab.config()).unwrap_err();
        assert!(matches!(error, Error::MapShape { .. }), "{error:?}");
        let maps = names(&root.join("maps")).len();
        let removed = cleanup(&root).unwrap();
        assert_eq!((removed.links, removed.maps), (4, maps));
        assert!(!removed.unmounted && !removed.directory, "it was there");
        for ours in ["maps", "links"] {
            assert!(!root.join(ours).exists());
        }
    });
}

#[test]
fn cleanup_removes_what_a_dead_process_left() {
    work_if_told();
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let root = lab.directory().join("bpf");
        assert!(cleanup(&root).unwrap().is_empty());
        let (one, spec) = pod("web-1", 5);
        let inside_before = names_of_links(&one.netlink());
        let job = Job {
            endpoints: vec![spec],
            peers: vec![peer("node-2", 2)],
            ..Job::new(lab.config())
        };
        for abi_version in [1, 7] {
            let mut worker = Worker::start("cleanup_removes_what_a_dead_process_left", &job);
            worker.wait("ready");
            let during = Machine::look(lab);
            let error = cleanup(&root).unwrap_err();
            let pid = worker.pid().to_string();
            assert!(matches!(error, Error::InUse { .. }), "{error:?}");
            assert!(error.to_string().contains(&pid), "{error}");
            assert_eq!(Machine::look(lab), during);
            worker.kill();

            set_state(&root.join("maps"), |state| state.abi_version = abi_version);
            let maps = names(&root.join("maps")).len();
            let removed = cleanup(&root).unwrap();
            assert_eq!(removed.abi_version, Some(abi_version));
            assert_eq!((removed.links, removed.maps), (6, maps));
            assert_eq!(
                removed.interfaces.len(),
                2,
                "dp_host and the pod's: {removed:?}"
            );
            assert!(removed.unmounted && removed.directory);
            assert_eq!(Machine::look(lab), before);
            assert_eq!(names_of_links(&one.netlink()), inside_before);
        }

        // One that was half built, one whose pins are gone, and one whose namespace is gone.
        Datapath::open(lab.config()).unwrap().leave();
        set_state(&root.join("maps"), |state| state.phase = phase::PARTIAL);
        assert!(!cleanup(&root).unwrap().is_empty());
        assert_eq!(Machine::look(lab), before);

        Datapath::open(lab.config()).unwrap().leave();
        nix::mount::umount(&root).unwrap();
        fs::remove_dir(&root).unwrap();
        wait("the programs go with the pins", || {
            common::machine::attached(UPLINK).is_empty()
        });
        assert_eq!(cleanup(&root).unwrap().interfaces, ["dp_host"]);
        assert_eq!(Machine::look(lab), before);

        Datapath::open(lab.config()).unwrap().leave();
        set_state(&root.join("maps"), |state| state.netns = 1);
        assert!(cleanup(&root).unwrap().interfaces.is_empty());
        let netlink = Netlink::open().unwrap();
        assert!(netlink.link("dp_host").unwrap().is_some(), "not its own");
        assert_eq!(cleanup(&root).unwrap().interfaces, ["dp_host"]);
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn a_datapath_whose_pins_are_gone_is_built_anew() {
    Lab::run(|lab| {
        let root = lab.directory().join("bpf");
        let (one, spec) = pod("web-1", 5);
        let first = Datapath::open(lab.config()).unwrap();
        first.add_endpoint(&spec).unwrap();
        first.leave();
        // As with a mount namespace that went with its process.
        nix::mount::umount(&root).unwrap();
        wait("the programs go with the pins", || {
            common::machine::attached(UPLINK).is_empty()
        });
        let second = Datapath::open(lab.config()).unwrap();
        assert_eq!(second.adopted(), None);
        assert!(names_of_links(&one.netlink()).len() == 1, "only lo");
        second.add_endpoint(&spec).unwrap();
        ping(here, spec.addresses[0]).unwrap();
        second.close().unwrap();
    });
}

/// Numbers of the pinned links and of their programs, by name.
fn pinned_links(lab: &Lab) -> BTreeMap<String, (u32, u32)> {
    let directory = lab.directory().join("bpf/links");
    let look = |name: String| {
        let link = FdLink::from(PinnedLink::from_pin(directory.join(&name)).unwrap());
        let info = link.info().unwrap();
        (name, (info.id(), info.program_id()))
    };
    names(&directory).into_iter().map(look).collect()
}

fn set_state(maps: &Path, change: impl FnOnce(&mut State)) {
    let map = MapData::from_pin(maps.join("state")).unwrap();
    let mut map: Array<_, State> = Map::from_map_data(map).unwrap().try_into().unwrap();
    let mut state = map.get(&0, 0).unwrap();
    change(&mut state);
    map.set(0, state, 0).unwrap();
}

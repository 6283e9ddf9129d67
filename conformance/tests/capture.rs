//! Captures can be read by tshark, and hold what crossed.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod util;

use std::{
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use datapath_conformance::{
    Error,
    capture::Capture,
    family::Family,
    probe::{self, EchoServer},
    topology::plan,
};
use util::{OrPanic, at, both_families, fabric, patient};

/// Reads fields of the frames that a filter takes, a line each.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    // Ask for checksums to be judged, which tshark leaves out by default.
    for option in ["tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
        command.args(["-o", option]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is not installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn tshark_reads_what_crossed() {
    let fabric = fabric("capture", 1);
    let node = fabric.node(1).or_panic().namespace();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.pcapng");
    let _server = EchoServer::start(fabric.outside(), &[], &[53]).or_panic();

    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let capture = Capture::start(node, &[plan::UPLINK], &file, "why it was kept").or_panic();
    both_families(|family| {
        let to = plan::outside_address(family);
        probe::icmp_echo(node, to, 3, 200, &patient())?;
        probe::udp_echo(node, at(to, 53), &[100], &patient())?;
        Ok::<_, Error>(())
    });
    let captured = capture.stop().or_panic();
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(
        (captured.path.as_path(), captured.lost),
        (file.as_path(), 0)
    );

    let all = tshark(
        &file,
        "frame",
        &["frame.time_epoch", "frame.interface_name"],
    );
    assert_eq!(all.len() as u64, captured.frames);
    // Frames of two processors may change places in the queue: only the span is certain.
    let span = began.as_secs_f64() - 1e-6..=ended.as_secs_f64() + 1e-6;
    for line in &all {
        let (time, interface) = line.split_once('\t').unwrap();
        assert_eq!(interface, plan::UPLINK);
        assert_eq!(
            time.split_once('.').unwrap().1.len(),
            9,
            "nanoseconds in {time}"
        );
        let time: f64 = time.parse().unwrap();
        assert!(span.contains(&time), "{time} in {span:?}");
    }
    // Ethernet, IP and ICMP headers around 200 bytes.
    for (requests, replies, length) in [
        ("icmp.type==8", "icmp.type==0", "242"),
        ("icmpv6.type==128", "icmpv6.type==129", "262"),
    ] {
        for which in [requests, replies] {
            assert_eq!(tshark(&file, which, &["frame.len"]), [length; 3], "{which}");
        }
    }
    // Direction: 1 is in, 2 is out.
    let directions = tshark(
        &file,
        "icmp.type==8 || icmp.type==0",
        &["frame.packet_flags_direction"],
    );
    assert_eq!(directions.len(), 6);
    let number = |text: &String| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    assert_eq!(
        directions.iter().map(number).collect::<Vec<_>>(),
        [2, 1, 2, 1, 2, 1]
    );

    let about = Command::new("capinfos")
        .arg("-k")
        .arg(&file)
        .output()
        .unwrap();
    let about = String::from_utf8_lossy(&about.stdout).into_owned();
    assert!(about.contains("why it was kept"), "{about}");
}

#[test]
fn all_interfaces_include_those_that_come_later() {
    let fabric = fabric("all", 1);
    let router = fabric.router();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("router.pcapng");
    let capture = Capture::start(router, &[], &file, "").or_panic();
    let node = fabric.node(1).or_panic().namespace();
    let to = plan::outside_address(Family::Ipv4);
    probe::icmp_echo(node, to, 1, 56, &patient()).or_panic();

    let netlink = router.netlink().unwrap();
    let later = datapath_tunnel::netlink::VethEnd::new;
    let link = netlink
        .add_veth(later("later"), later("later-peer"))
        .unwrap();
    for interface in ["later", "later-peer"] {
        netlink
            .set_up(router.link(interface).or_panic().index, true)
            .unwrap();
    }
    let mut port = probe::RawPort::open(router, "later").or_panic();
    port.send(&[0xee; 60]).unwrap();
    netlink.delete_link(link.index).unwrap();

    capture.stop().or_panic();
    // The request passes the port, the bridge and the link to the outside.
    let mut path = tshark(&file, "icmp.type==8", &["frame.interface_name"]);
    path.sort();
    assert_eq!(path, ["br0", "ext", "n1"]);
    let made_up = tshark(&file, "eth.type==0xeeee", &["frame.interface_name"]);
    assert_eq!(made_up.len(), 2, "{made_up:?}");
}

#[test]
fn captures_fail_by_name_and_can_be_thrown_away() {
    let fabric = fabric("fail", 1);
    let node = fabric.node(1).or_panic().namespace();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.pcapng");
    let missing = Capture::start(node, &["eth7"], &file, "");
    assert!(matches!(missing, Err(Error::NoInterface { .. })));
    let nowhere = directory.path().join("no/such/directory.pcapng");
    let nowhere = Capture::start(node, &[], &nowhere, "");
    assert!(matches!(nowhere, Err(Error::CaptureFile { .. })));
    let capture = Capture::start(node, &[], &file, "").or_panic();
    assert!(file.exists());
    capture.discard().or_panic();
    assert!(!file.exists());
    drop(Capture::start(node, &[], &file, "").or_panic());
    // A dropped one is complete; nobody has sent anything but the kernel's own multicast.
    assert!(tshark(&file, "icmp || udp", &["frame.len"]).is_empty());
}

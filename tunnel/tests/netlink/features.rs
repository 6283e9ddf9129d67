//! Features of interfaces, against `ethtool -k` where it is installed.

use std::process::Command;

use datapath_tunnel::netlink::TX_UDP_SEGMENTATION;
use nix::errno::Errno;

use crate::lab::{Pair, errno};

#[test]
fn a_feature_is_switched_and_looked_at() {
    let pair = Pair::new();
    let (pod, index) = (&pair.pod_net, pair.far.index);
    assert!(pod.feature(index, TX_UDP_SEGMENTATION).unwrap());
    for on in [false, false, true] {
        assert!(pod.set_feature(index, TX_UDP_SEGMENTATION, on).unwrap());
        assert_eq!(pod.feature(index, TX_UDP_SEGMENTATION).unwrap(), on);
        let said = pair
            .pod
            .run(|| Command::new("ethtool").args(["-k", "eth0"]).output());
        if let Ok(said) = said {
            let said = String::from_utf8(said.stdout).unwrap();
            let state = if on { "on" } else { "off" };
            let line = format!("{TX_UDP_SEGMENTATION}: {state}");
            assert!(said.contains(&line), "{said}");
        }
    }
    // The other end has its own.
    let (node, near) = (&pair.node_net, pair.near.index);
    assert!(pod.set_feature(index, TX_UDP_SEGMENTATION, false).unwrap());
    assert!(node.feature(near, TX_UDP_SEGMENTATION).unwrap());
}

#[test]
fn what_cannot_be_switched_says_so() {
    let pair = Pair::new();
    let (pod, index) = (&pair.pod_net, pair.far.index);
    // Checksums of frames are for hardware that sees them: the driver has this one fixed.
    assert!(!pod.set_feature(index, "rx-fcs", true).unwrap());
    let unknown = errno(pod.set_feature(index, "no-such-feature", true));
    assert!(
        matches!(unknown, Errno::EINVAL | Errno::EOPNOTSUPP),
        "{unknown}"
    );
    assert!(!pod.feature(index, "no-such-feature").unwrap());
    for outcome in [
        pod.feature(4711, TX_UDP_SEGMENTATION),
        pod.set_feature(4711, TX_UDP_SEGMENTATION, true),
    ] {
        assert_eq!(errno(outcome), Errno::ENODEV);
    }
    let error = pod.feature(0, TX_UDP_SEGMENTATION).unwrap_err();
    assert!(error.to_string().contains("no interface has the number 0"));
}

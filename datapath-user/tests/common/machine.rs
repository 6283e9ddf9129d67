//! What of the machine a datapath may change, and what it is told of in tests of its life.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use datapath_tunnel::netlink::Netlink;
use datapath_user::{Error, PeerSpec, RemotePod};

use super::{Lab, OUTSIDE, UPLINK, ip, net};

/// What a datapath may change, and must put back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) links: BTreeSet<String>,
    pub(crate) addresses: BTreeSet<String>,
    pub(crate) routes: BTreeSet<String>,
    pub(crate) mounts: BTreeSet<String>,
    pub(crate) files: BTreeSet<PathBuf>,
    pub(crate) programs: usize,
}

impl Machine {
    pub(crate) fn look(lab: &Lab) -> Self {
        let netlink = Netlink::open().unwrap();
        let addresses = netlink.addresses().unwrap();
        let routes = netlink.routes().unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        // Others' come and go meanwhile.
        let ours = lab.directory().to_str().unwrap();
        let mounts = mounts.lines().filter(|mount| mount.contains(ours));
        let mut files = BTreeSet::new();
        walk(lab.directory(), &mut files);
        Self {
            links: names_of_links(&netlink),
            addresses: addresses
                .iter()
                .map(|a| format!("{} {}", a.index, a.net))
                .collect(),
            routes: routes.iter().map(ToString::to_string).collect(),
            mounts: mounts.map(ToOwned::to_owned).collect(),
            files,
            programs: attached(UPLINK).len(),
        }
    }
}

impl Machine {
    /// Leaves a directory out of account.
    pub(crate) fn forget(&mut self, directory: &Path) {
        self.files.remove(directory);
    }
}

fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for name in names(directory) {
        let path = directory.join(name);
        if path.is_dir() {
            walk(&path, found);
        }
        found.insert(path);
    }
}

pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub(crate) fn names_of_links(netlink: &Netlink) -> BTreeSet<String> {
    netlink
        .links()
        .unwrap()
        .into_iter()
        .map(|link| link.name)
        .collect()
}

/// Numbers of the programs on an interface of this namespace.
pub(crate) fn attached(interface: &str) -> BTreeSet<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|side| SchedClassifier::query_tcx(interface, side).unwrap().1)
        .map(|program| program.id())
        .collect()
}

/// The kernel frees programs a moment after their last user went.
pub(crate) fn assert_gone(programs: &BTreeSet<u32>) {
    wait("the programs are freed", || {
        let loaded = loaded_programs().filter_map(Result::ok);
        !loaded
            .map(|program| program.id())
            .any(|at| programs.contains(&at))
    });
}

pub(crate) fn wait(what: &str, until: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !until() {
        assert!(Instant::now() < end, "{what}, but not in ten seconds");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The chain of an error.
pub(crate) fn text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

pub(crate) fn mount_bpffs(at: &Path) {
    use nix::mount::{MsFlags, mount};
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
}

/// A node behind the same uplink.
pub(crate) fn peer(name: &str, number: u8) -> PeerSpec {
    assert_ne!(ip(&format!("192.0.2.10{number}")), ip(OUTSIDE[0]));
    PeerSpec {
        name: name.to_owned(),
        address: ip(&format!("192.0.2.10{number}")),
        node_addresses: vec![ip(&format!("2001:db8:2::10{number}"))],
        pod_cidrs: vec![
            net(&format!("10.244.{number}.0/24")),
            net(&format!("fd00:244:{number}::/64")),
        ],
        pods: vec![RemotePod::new(
            ip(&format!("10.244.{number}.7")),
            Some(2007),
        )],
        uplink: None,
        labels: BTreeMap::new(),
    }
}

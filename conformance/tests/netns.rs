//! Namespaces come, are entered, and go.

mod util;

use std::{
    env, fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    panic,
    path::Path,
    process::Command,
};

use datapath_conformance::{
    Error,
    netns::{self, Namespace},
    probe,
};
use util::{OrPanic, patient, unique};

#[test]
fn ip_netns_sees_it_while_it_lives() {
    let name = unique("seen");
    let listed = || {
        let output = Command::new("ip").arg("netns").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().any(|word| word == name)
    };
    assert!(!listed());
    let namespace = Namespace::create(&name).or_panic();
    assert!(listed());
    assert!(netns::names().or_panic().contains(&name));
    drop(namespace);
    assert!(!listed());
    assert!(!Path::new("/run/netns").join(&name).exists());
}

#[test]
fn its_loopback_answers() {
    let namespace = Namespace::create(&unique("lo")).or_panic();
    for address in ["127.0.0.1", "::1"] {
        let address = address.parse().unwrap();
        probe::icmp_echo(&namespace, address, 2, 1000, &patient()).or_panic();
    }
}

#[test]
fn work_runs_inside_and_the_caller_stays_outside() {
    let namespace = Namespace::create(&unique("run")).or_panic();
    let here = || fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let outside = here();
    assert_ne!(outside, namespace.inode());
    assert_eq!(namespace.run(here).or_panic(), namespace.inode());
    assert_eq!(here(), outside);
    assert_eq!(namespace.link("lo").or_panic().name, "lo");
    assert!(matches!(
        namespace.link("eth0"),
        Err(Error::NoInterface { .. })
    ));
}

#[test]
fn a_panic_inside_comes_out_and_takes_the_namespace_along() {
    let name = unique("panic");
    let payload = panic::catch_unwind(|| {
        let namespace = Namespace::create(&name).or_panic();
        let _: () = namespace.run(|| panic::panic_any(17_u8)).or_panic();
    })
    .unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&17_u8));
    assert!(matches!(
        Namespace::open(&name),
        Err(Error::NamespaceMissing { .. })
    ));
}

#[test]
fn commands_run_inside_and_see_the_mounts_outside() {
    let namespace = Namespace::create(&unique("command")).or_panic();
    let output = namespace
        .command("sh")
        .args(["-c", "readlink /proc/self/ns/net /proc/self/ns/mnt"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mounts = fs::read_link("/proc/self/ns/mnt").unwrap();
    let expected = format!("net:[{}]\n{}\n", namespace.inode(), mounts.display());
    assert_eq!(text, expected);
}

#[test]
fn names_are_taken_once_and_bad_ones_never() {
    let name = unique("twice");
    let _first = Namespace::create(&name).or_panic();
    let second = Namespace::create(&name);
    assert!(matches!(second, Err(Error::NamespaceExists { .. })));
    // The failed attempt has not taken the first one away.
    Namespace::open(&name).or_panic();
    assert!(matches!(
        Namespace::create("../x"),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn left_there_it_can_be_adopted() {
    let name = unique("leak");
    let mut namespace = Namespace::create(&name).or_panic();
    let inode = namespace.inode();
    namespace.leak();
    drop(namespace);
    drop(Namespace::open(&name).or_panic());
    let adopted = Namespace::adopt(&name).or_panic();
    assert_eq!(adopted.inode(), inode);
    adopted.delete().or_panic();
    assert!(matches!(
        Namespace::adopt(&name),
        Err(Error::NamespaceMissing { .. })
    ));
}

#[test]
fn settings_are_its_own() {
    const KEY: &str = "net.ipv4.conf.all.rp_filter";
    const FILE: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";
    let before = fs::read_to_string(FILE).unwrap();
    let namespace = Namespace::create(&unique("sysctl")).or_panic();
    for value in ["0", "1", "2"] {
        namespace.set_sysctl(KEY, value).or_panic();
        assert_eq!(namespace.sysctl(KEY).or_panic(), value);
        assert_eq!(fs::read_to_string(FILE).unwrap(), before);
    }
    let refused = namespace.set_sysctl("kernel.hostname", "x");
    assert!(matches!(refused, Err(Error::Invalid { .. })));
    let missing = namespace.set_sysctl("net.ipv4.no_such_thing", "1");
    assert!(matches!(missing, Err(Error::Os { .. })));
}

#[test]
fn the_machines_own_settings_are_refused() {
    let name = unique("own");
    // Gives the namespace of this process a name; taking the name away leaves it alone.
    let pid = std::process::id().to_string();
    let attached = Command::new("ip")
        .args(["netns", "attach", &name, &pid])
        .status();
    assert!(attached.unwrap().success());
    let own = Namespace::adopt(&name).or_panic();
    let value = own.sysctl("net.ipv4.ip_forward").or_panic();
    let refused = own.set_sysctl("net.ipv4.ip_forward", &value);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

/// Runs itself again as a user without rights.
#[test]
fn without_root_it_says_what_to_do() {
    const ROLE: &str = "LAB_TEST_WITHOUT_ROOT";
    if env::var_os(ROLE).is_some() {
        let refused = Namespace::create("never").unwrap_err();
        assert!(matches!(refused, Error::NotRoot { uid: 65534 }));
        assert!(refused.to_string().contains("sudo"), "{refused}");
        return;
    }
    let output = Command::new("/proc/self/exe")
        .args(["--exact", "without_root_it_says_what_to_do"])
        .env(ROLE, "1")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

//! A node, its pods and an outside host, each a network namespace without a name.
//!
//! A namespace is an open file here: it lives as long as that, so nothing has to be cleaned up. The
//! node has a mount namespace of its own too: what a failed test left mounted goes with it.

#![allow(dead_code, reason = "every test binary uses its own part")]

pub(crate) mod machine;
pub(crate) mod stream;
pub(crate) mod worker;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    panic,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use datapath_tunnel::netlink::{Netlink, Route, VethEnd};
use datapath_user::{Config, EndpointSpec};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use tempfile::TempDir;

/// Longest wait for a packet that is expected.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Name of the node's uplink.
pub(crate) const UPLINK: &str = "up0";
/// Addresses of the node's uplink.
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
/// Addresses of the host outside.
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.100", "2001:db8:2::100"];

/// A network namespace, held by an open file.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one, with its loopback interface on.
    pub(crate) fn new() -> Self {
        let namespace = thread::scope(|scope| {
            let making = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
                File::open("/proc/thread-self/ns/net").unwrap()
            });
            Self {
                file: making.join().unwrap(),
            }
        });
        let netlink = namespace.netlink();
        let lo = netlink.link("lo").unwrap().unwrap();
        netlink.set_up(lo.index, true).unwrap();
        namespace
    }

    /// A path to it, good as long as this process lives.
    pub(crate) fn path(&self) -> PathBuf {
        let (process, fd) = (std::process::id(), self.file.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{fd}"))
    }

    pub(crate) fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.path()).unwrap()
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

/// What a test works in.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The host at the other end of the uplink.
    pub(crate) outside: Namespace,
    directory: TempDir,
}

impl Lab {
    /// Runs a test on a thread that is a node, with an uplink to a host outside.
    pub(crate) fn run<R: Send>(test: impl FnOnce(&Self) -> R + Send) -> R {
        let node = || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("network and mount namespaces need root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            test(&Self::new())
        };
        thread::scope(|scope| scope.spawn(node).join())
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    fn new() -> Self {
        let outside = Namespace::new();
        let lab = Self {
            outside,
            directory: TempDir::new().unwrap(),
        };
        let netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        netlink.set_up(lo.index, true).unwrap();
        let path = lab.outside.path();
        let far = VethEnd {
            netns: Some(&path),
            ..VethEnd::new("node0")
        };
        let near = netlink.add_veth(VethEnd::new(UPLINK), far).unwrap();
        furnish(&netlink, near.index, NODE);
        let far = lab.outside.netlink();
        let index = far.link("node0").unwrap().unwrap().index;
        furnish(&far, index, OUTSIDE);
        lab
    }

    /// A directory on an ordinary file system, gone with the test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Settings that fit this node: pods of both families, small tables.
    pub(crate) fn config(&self) -> Config {
        Config {
            pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244:1::/64")],
            gateways: vec![ip("10.244.1.1"), ip("fd00:244:1::1")],
            max_flows: Some(1024),
            max_pending: Some(1024),
            ..Config::new(self.directory().join("bpf"), [UPLINK])
        }
    }
}

/// A pod of the node: its namespace, and what to ask for.
pub(crate) fn pod(id: &str, number: u8) -> (Namespace, EndpointSpec) {
    let namespace = Namespace::new();
    let spec = EndpointSpec {
        id: id.to_owned(),
        netns: namespace.path(),
        interface: "eth0".to_owned(),
        addresses: pod_addresses(number).to_vec(),
        identity: Some(1000 + u32::from(number)),
        ..EndpointSpec::default()
    };
    (namespace, spec)
}

/// Both addresses of the pod with a number.
pub(crate) fn pod_addresses(number: u8) -> [IpAddr; 2] {
    [
        ip(&format!("10.244.1.{number}")),
        ip(&format!("fd00:244:1::{number}")),
    ]
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn furnish(netlink: &Netlink, index: u32, addresses: [&str; 2]) {
    netlink.set_no_addrgen(index).unwrap();
    netlink.set_up(index, true).unwrap();
    for (address, bits) in addresses.into_iter().zip([24, 64]) {
        netlink
            .add_address(index, ipnet::IpNet::new(ip(address), bits).unwrap())
            .unwrap();
    }
    let everywhere = if addresses == NODE { OUTSIDE } else { return };
    for (gateway, default) in everywhere.into_iter().zip(["0.0.0.0/0", "::/0"]) {
        netlink
            .add_route(&Route::to(net(default)).via(ip(gateway)).dev(index))
            .unwrap();
    }
}

/// Sends a datagram to a socket that is read elsewhere and answered; returns who the receiver
/// took the sender for.
pub(crate) fn udp(
    from: impl Fn(&mut (dyn FnMut() + Send)),
    to: impl Fn(&mut (dyn FnMut() + Send)),
    address: IpAddr,
) -> Result<SocketAddr, String> {
    let mut server = None;
    to(&mut || server = Some(UdpSocket::bind((address, 0)).unwrap()));
    let server = server.unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = server.local_addr().unwrap();
    let mut client = None;
    from(&mut || client = Some(UdpSocket::bind(any(address)).unwrap()));
    let client = client.unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let text = |what: &str, error: std::io::Error| format!("{what} {target}: {error}");
    client
        .connect(target)
        .map_err(|error| text("connect to", error))?;
    let mut buffer = [0; 64];
    let mut seen = None;
    // Thrice: a flow is new, answered and proven.
    for round in 0..3_u8 {
        client
            .send(&[round; 9])
            .map_err(|error| text("send to", error))?;
        let (len, sender) = server
            .recv_from(&mut buffer)
            .map_err(|error| text("receive at", error))?;
        assert_eq!(&buffer[..len], [round; 9]);
        server
            .send_to(&buffer[..len], sender)
            .map_err(|error| text("answer from", error))?;
        let len = client
            .recv(&mut buffer)
            .map_err(|error| text("hear from", error))?;
        assert_eq!(&buffer[..len], [round; 9]);
        seen = Some(sender);
    }
    Ok(seen.unwrap())
}

/// Sends more than fits into a packet over TCP, and the same back.
pub(crate) fn tcp(
    from: impl Fn(&mut (dyn FnMut() + Send)),
    to: impl Fn(&mut (dyn FnMut() + Send)),
    address: IpAddr,
) -> Result<SocketAddr, String> {
    use std::io::{Read, Write};
    const BYTES: usize = 200_000;

    let mut server = None;
    to(&mut || server = Some(TcpListener::bind((address, 0)).unwrap()));
    let server = server.unwrap();
    let target = server.local_addr().unwrap();
    let mut client = None;
    from(&mut || client = Some(TcpStream::connect_timeout(&target, PATIENCE)));
    let mut client = client
        .unwrap()
        .map_err(|error| format!("connect to {target}: {error}"))?;
    let (mut accepted, sender) = server.accept().unwrap();
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let sent: Vec<u8> = (0..251).cycle().take(BYTES).collect();
    thread::scope(|scope| {
        let echo = scope.spawn(move || {
            let mut received = vec![0; BYTES];
            accepted
                .read_exact(&mut received)
                .map_err(|error| format!("read: {error}"))?;
            accepted
                .write_all(&received)
                .map_err(|error| format!("write back: {error}"))
        });
        client
            .write_all(&sent)
            .map_err(|error| format!("write to {target}: {error}"))?;
        let mut back = vec![0; BYTES];
        client
            .read_exact(&mut back)
            .map_err(|error| format!("read from {target}: {error}"))?;
        assert!(back == sent, "what came back is not what was sent");
        echo.join().unwrap()
    })?;
    Ok(sender)
}

/// Sends an echo request and waits for the reply (RFC 792, RFC 4443).
pub(crate) fn ping(
    from: impl Fn(&mut (dyn FnMut() + Send)),
    address: IpAddr,
) -> Result<(), String> {
    use socket2::{Domain, Protocol, Socket, Type};
    const IDENTIFIER: u16 = 0x1d07;

    let (domain, protocol, request, reply) = if address.is_ipv4() {
        (Domain::IPV4, Protocol::ICMPV4, 8, 0)
    } else {
        (Domain::IPV6, Protocol::ICMPV6, 128, 129)
    };
    let mut socket = None;
    from(&mut || socket = Some(Socket::new(domain, Type::RAW, Some(protocol)).unwrap()));
    let socket: UdpSocket = socket.unwrap().into();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for sequence in 0..3_u16 {
        let [id_high, id_low] = IDENTIFIER.to_be_bytes();
        let [high, low] = sequence.to_be_bytes();
        let mut message = [request, 0, 0, 0, id_high, id_low, high, low];
        if address.is_ipv4() {
            // The kernel writes that of ICMPv6 itself.
            let words = message
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
            let sum: u32 = words.sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        let target = SocketAddr::new(address, 0);
        socket
            .send_to(&message, target)
            .map_err(|error| format!("ping {address}: {error}"))?;
        loop {
            let mut buffer = [0; 128];
            let len = socket
                .recv(&mut buffer)
                .map_err(|e| format!("hear {address}: {e}"))?;
            // An IPv4 raw socket shows the IP header (raw(7)).
            let start = if address.is_ipv4() {
                usize::from(buffer[0] & 0x0f) * 4
            } else {
                0
            };
            let answer = &buffer[start..len];
            if answer[0] == reply && answer[4..] == message[4..] {
                break;
            }
        }
    }
    Ok(())
}

/// For [`udp`], [`tcp`] and [`ping`]: sockets of a namespace.
pub(crate) fn of(namespace: &Namespace) -> impl Fn(&mut (dyn FnMut() + Send)) {
    move |make| namespace.run(&mut *make)
}

/// For [`udp`], [`tcp`] and [`ping`]: sockets of the calling thread's namespace.
pub(crate) fn here(make: &mut (dyn FnMut() + Send)) {
    make();
}

fn any(like: IpAddr) -> SocketAddr {
    let address = if like.is_ipv4() { "0.0.0.0" } else { "::" };
    SocketAddr::new(ip(address), 0)
}

//! Who reaches whom, by every protocol, and as whom.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use nix::{getsockopt_impl, libc, sockopt_impl, sys::socket::getsockopt};
use socket2::{Domain, SockAddr, Type};

use super::{
    PORT,
    check::{Complaint, Found, Subject, expect},
    patience,
    site::{Cast, Host},
};
use crate::{
    error::Error,
    family::{Family, Protocol},
    frame::{Direction, Frame, FrameSocket},
    probe::{self, Options},
    report::Check,
};

/// Bytes that TCP moves in each direction.
const TCP_BYTES: usize = 64 << 10;
/// Bytes that bulk TCP moves in each direction: segments of all sizes that offloads make.
const BULK_BYTES: usize = 2 << 20;
/// How many echo requests ICMP sends.
const ECHOES: usize = 3;
/// Length of the IPv6 and UDP headers, those of IPv4 being shorter by 20.
const HEADERS_V6: usize = 48;

const SCENARIO: &str = "paths";

/// Someone who opens a connection to someone else.
#[derive(Clone, Copy)]
struct Path<'s, 'a> {
    name: &'static str,
    client: &'s Host<'a>,
    server: &'s Host<'a>,
    /// Which of the server's addresses is called.
    to: IpAddr,
    /// The address that the server must see.
    seen: IpAddr,
}

/// Every path with every family and protocol; those of a path run at the same time.
pub(super) fn checks(cast: &Cast<'_, '_>, mut tell: impl FnMut(Vec<Check>)) {
    let by_family = Family::ALL.map(|family| paths(cast, family));
    let mut names: Vec<&str> = Vec::new();
    for path in by_family.iter().flatten() {
        if !names.contains(&path.name) {
            names.push(path.name);
        }
    }
    for name in names {
        let here = by_family.iter().flatten().filter(|path| path.name == name);
        let pairs = here.flat_map(|path| Protocol::ALL.map(|protocol| (path, protocol)));
        tell(at_once(pairs, |(path, protocol)| {
            let subject = Subject::new(SCENARIO, path.name)
                .family(Family::of(path.to))
                .protocol(protocol);
            subject.check(|| match protocol {
                Protocol::Tcp => tcp(path, TCP_BYTES),
                Protocol::Udp => udp(path),
                Protocol::Icmp => icmp(path),
            })
        }));
    }
}

/// Bulk TCP over the paths that carry most of it, one after the other.
pub(super) fn bulk(cast: &Cast<'_, '_>, mut tell: impl FnMut(Check)) {
    for family in Family::ALL {
        for path in paths(cast, family).into_iter().filter(Path::is_bulky) {
            let subject = Subject::new("bulk", path.name)
                .family(family)
                .protocol(Protocol::Tcp);
            tell(subject.check(|| tcp(&path, BULK_BYTES)));
        }
    }
}

impl Path<'_, '_> {
    fn is_bulky(&self) -> bool {
        [SAME_NODE, OTHER_NODE, OUTSIDE].contains(&self.name)
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.to, PORT)
    }
}

const SAME_NODE: &str = "pod to pod, same node";
const OTHER_NODE: &str = "pod to pod, other node";
const OUTSIDE: &str = "pod to outside";

/// The paths of a family that the site has addresses for.
fn paths<'s, 'a>(cast: &Cast<'s, 'a>, family: Family) -> Vec<Path<'s, 'a>> {
    let Cast {
        site,
        node,
        other_node,
        pod,
        neighbour,
        remote,
        ..
    } = *cast;
    let own = |host: &Host<'_>| host.addresses.get(family);
    let gateway = node.gateways.get(family);
    let outward = node.outward.get(family);
    let path = |name, client: &'s Host<'a>, server, to: Option<IpAddr>, seen: Option<IpAddr>| {
        Some(Path {
            name,
            client,
            server,
            to: to?,
            seen: seen?,
        })
    };
    let [p, n, r] = [pod, neighbour, remote].map(|pod| &pod.host);
    let (a, b, outside) = (&node.host, &other_node.host, &site.outside);
    [
        path(SAME_NODE, p, n, own(n), own(p)),
        path(OTHER_NODE, p, r, own(r), own(p)),
        path(OUTSIDE, p, outside, own(outside), outward),
        path("node to its own pod", a, p, own(p), gateway),
        path("node to a pod of another node", a, r, own(r), gateway),
        path("pod to its gateway", p, a, gateway, own(p)),
        path("pod to its node's underlay address", p, a, own(a), own(p)),
        path("pod to another node's gateway", r, a, gateway, own(r)),
        path(
            "pod to another node's underlay address",
            p,
            b,
            own(b),
            own(a),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn patient() -> Options {
    Options::default().with_timeout(patience())
}

fn tcp(path: &Path<'_, '_>, bytes: usize) -> Result<Found, Complaint> {
    let report = probe::tcp_echo(path.client.namespace, path.to(), bytes, &patient())?;
    let seen = seen_as(path, report.seen_source)?;
    let rate = megabytes_per_second(bytes, report.elapsed);
    Ok(Found {
        detail: format!(
            "{bytes} bytes verified in {:.1?} ({rate:.0} MB/s), handshake {:.0?}, seen as {seen}",
            report.elapsed, report.rtt
        ),
        actions: 1,
    })
}

fn udp(path: &Path<'_, '_>) -> Result<Found, Complaint> {
    let client = path.client.namespace;
    let headers = if path.to.is_ipv4() {
        HEADERS_V6 - 20
    } else {
        HEADERS_V6
    };
    let full = path_mtu_bytes(path)?.saturating_sub(headers);
    // Without fragments: the largest one has to fit as it is.
    let options = patient().with_dont_fragment();
    let sizes = [0, 1, 17, 1200, full];
    let report = probe::udp_echo(client, path.to(), &sizes, &options)?;
    let seen = seen_as(path, report.seen_source)?;
    Ok(Found {
        detail: format!(
            "{} datagrams of up to {full} bytes verified, rtt {:.0?}, seen as {seen}",
            sizes.len(),
            report.rtt
        ),
        actions: 5,
    })
}

/// The largest packet that the client's routes let through to the server.
fn path_mtu_bytes(path: &Path<'_, '_>) -> Result<usize, Complaint> {
    let domain = if path.to.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = path.client.namespace.socket(domain, Type::DGRAM, None)?;
    let asked = socket.connect(&SockAddr::from(path.to())).and_then(|()| {
        let mtu = match path.to {
            IpAddr::V4(_) => getsockopt(&socket, MtuIpv4)?,
            IpAddr::V6(_) => getsockopt(&socket, MtuIpv6)?,
        };
        Ok(usize::try_from(mtu).unwrap_or(0))
    });
    Ok(asked.map_err(Error::os("ask for the path MTU to", path.to))?)
}

sockopt_impl!(
    /// MTU of the route of a connected socket (ip(7)).
    MtuIpv4,
    GetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU,
    libc::c_int
);
sockopt_impl!(
    /// MTU of the route of a connected socket (ipv6(7)).
    MtuIpv6,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

fn icmp(path: &Path<'_, '_>) -> Result<Found, Complaint> {
    const BYTES: usize = 300;
    // Echo has no server that could tell: what arrives is looked at.
    let mut ears = FrameSocket::open(path.server.namespace, None)?;
    let client = path.client.namespace;
    let report = probe::icmp_echo(client, path.to, ECHOES, BYTES, &patient())?;
    let mut sources = Vec::new();
    while let Ok(Some(frame)) = ears.next(Instant::now()) {
        // On a node the frames that pods send are heard too, before anything is done to them:
        // also for those the source is right, or the path would not be one of the node's own.
        sources.extend(echo_source(&frame, path.to, BYTES));
    }
    let Some(&seen) = sources.first() else {
        return Err(Complaint::new(format!(
            "the requests were answered, but none was seen in {}",
            path.server.name
        )));
    };
    expect("the requests come from", &path.seen, &seen)?;
    Ok(Found {
        detail: format!(
            "{ECHOES} echoes of {BYTES} bytes verified, rtt {:.0?}, seen as {seen}",
            report.rtt
        ),
        actions: ECHOES as u64,
    })
}

/// The sender of an echo request to `to` with so much payload.
fn echo_source(frame: &Frame, to: IpAddr, bytes: usize) -> Option<IpAddr> {
    if frame.direction != Direction::In {
        return None;
    }
    let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => return None,
    };
    let payload = match packet.transport.as_ref()? {
        TransportSlice::Icmpv4(icmp) if matches!(icmp.icmp_type(), Icmpv4Type::EchoRequest(_)) => {
            icmp.payload()
        }
        TransportSlice::Icmpv6(icmp) if matches!(icmp.icmp_type(), Icmpv6Type::EchoRequest(_)) => {
            icmp.payload()
        }
        _ => return None,
    };
    (destination == to && payload.len() == bytes).then_some(source)
}

fn seen_as(path: &Path<'_, '_>, seen: Option<SocketAddr>) -> Result<SocketAddr, Complaint> {
    let seen = seen.ok_or_else(|| Complaint::new("the server did not say whom it saw"))?;
    expect("the server sees", &path.seen, &seen.ip())?;
    Ok(seen)
}

/// Does the work for every item at the same time; the results keep the order.
fn at_once<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(|| work(item))).collect();
        let results = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        });
        results.collect()
    })
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes_per_second(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-9)
}
